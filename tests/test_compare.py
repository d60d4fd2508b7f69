"""compare.py against values counted by hand and by scipy, and against folders of every state."""

import csv
import io
import json
import math
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import yaml

from experiments.compare import main
from experiments.comparing.as_text import csv_text, duration, markdown, sparkline
from experiments.comparing.groups import make_groups
from experiments.comparing.means import mean_curve, mean_of, paired_difference
from experiments.comparing.tables import Comparison, compare
from experiments.run_files.read_run import find_runs, read_run
from experiments.run_files.wandb_runs import run_of
from tests.fake_runs import write_grid, write_run

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_grid(tmp_path_factory.mktemp("compare") / "runs")


def compared(folder: Path, **more: Any) -> Comparison:
    return compare(find_runs([str(folder)]), **{"split": "val", **more})


def test_means_and_deviations_by_hand() -> None:
    mean = mean_of([1.0, 2.0, 4.0])
    assert mean is not None
    assert (mean.mean, mean.n) == (7 / 3, 3)
    assert mean.std == pytest.approx(math.sqrt((16 / 9 + 1 / 9 + 25 / 9) / 2), abs=1e-15)
    one = mean_of([0.25])
    assert one is not None
    assert (one.mean, one.std, one.n) == (0.25, None, 1)
    assert mean_of([]) is None


@pytest.mark.parametrize("seeds", [2, 3, 10])
def test_intervals_are_those_of_scipy_over_common_seeds(seeds: int) -> None:
    generator = np.random.default_rng(seeds)
    ours = dict(enumerate(generator.random(seeds + 2).tolist()))
    theirs = dict(enumerate(generator.random(seeds + 3).tolist(), 2))  # the first common seed is 2
    common = range(2, seeds + 2)
    one = paired_difference(ours, theirs)
    assert one is not None
    result = scipy.stats.ttest_rel([ours[s] for s in common], [theirs[s] for s in common])
    interval = result.confidence_interval(0.95)
    assert (one.low, one.high) == pytest.approx((interval.low, interval.high), rel=1e-12)
    assert one.mean == pytest.approx(sum(ours[s] - theirs[s] for s in common) / seeds)
    assert one.n == seeds
    assert one.is_clear == (result.pvalue < 0.05)


def test_differences_of_one_seed_or_none() -> None:
    one = paired_difference({0: 0.5, 1: 0.25}, {1: 0.125, 2: 0.9})
    assert one is not None
    assert (one.mean, one.low, one.high, one.n, one.is_clear) == (0.125, None, None, 1, False)
    assert paired_difference({0: 0.5}, {1: 0.5}) is None


def test_groups_hold_all_seeds_and_are_ranked_within_their_protocol(grid: Path) -> None:
    comparison = compared(grid)
    large, small = comparison.tables
    assert [len(row.group.runs) for row in large.rows] == [3] * 6
    assert {run.seed for row in large.rows for run in row.group.runs} == {0, 1, 2}
    means = [row.score.mean for row in large.rows if row.score]
    assert means == sorted(means, reverse=True)
    assert large.baseline == large.rows[0].label == "vgg16 · unet"
    for row in large.rows:
        scores = [json.loads((Path(run.where) / "results.json").read_text())["scores"]["val"] for run in row.group.runs]
        assert row.score is not None
        assert row.score.mean == pytest.approx(np.mean([one["miou"] for one in scores]), abs=1e-12)
        assert row.score.std == pytest.approx(np.std([one["miou"] for one in scores], ddof=1), abs=1e-12)
        assert row.classes["car"].mean == pytest.approx(np.mean([one["iou/car"] for one in scores]), abs=1e-12)
        assert row.costs["wall_time_s"] == pytest.approx(60 * row.costs["gmacs"] + 1)
    assert [row.label for row in small.rows] == ["resnet18 · unet"]
    assert small.rows[0].score
    assert small.rows[0].score.mean == 0.9  # the best of all, and in no table with them
    assert "size 24 x 32" in large.title
    assert "size 12 x 16" in small.title


PROTOCOLS: dict[str, dict[str, Any]] = {
    "data": {"protocol": {"data": "voc"}},
    "split sizes": {"protocol": {"splits": {"train": 20, "val": 11, "test": 10}}},
    "image size": {"protocol": {"image_size": [32, 24]}},
    "classes": {"classes": ("background", "road")},
    "order of classes": {"classes": ("road", "background", "<b>tree</b>", "car", "person")},
    "ignored label": {"protocol": {"ignore_index": 11}},
    "task": {"protocol": {"task": "classification"}},
    "samples left out": {"protocol": {"skipped": {"val": 1}}},
    "names of as many classes": {"classes": ("background", "street", "<b>tree</b>", "car", "person")},
    "other data of the same size": {"protocol": {"data_fingerprint": "fedcba9876543210"}},
    "data of an older version": {"protocol": {"data_fingerprint": None}},
}


@pytest.mark.parametrize("what", PROTOCOLS)
def test_another_protocol_is_another_table(what: str, tmp_path: Path, capsys) -> None:
    write_run(tmp_path / "a", "resnet18", "unet", 0, 0.5)
    write_run(tmp_path / "b", "resnet18", "unet", 1, 0.6, **PROTOCOLS[what])
    assert [len(table.rows) for table in compared(tmp_path, metric="loss").tables] == [1, 1]
    assert main([str(tmp_path)]) == 0
    assert "Scores under different protocols do not compare: these are 2 tables" in capsys.readouterr().out


def test_a_crf_is_another_protocol(tmp_path: Path) -> None:
    for name, crf in (("a", None), ("b", {"mode": "test"}), ("c", {"mode": "train"})):
        results = write_run(tmp_path / name, "resnet18", "unet", 0, 0.5) / "results.json"
        results.write_text(json.dumps(json.loads(results.read_text()) | {"crf": crf}))
    assert sorted(table.protocol["crf"] for table in compared(tmp_path).tables) == ["none", "test", "train"]


def test_settings_that_change_no_score_do_not_part_runs(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "resnet18", "unet", 0, 0.5, workers=2, head_options=None)  # an older one had no cache
    write_run(tmp_path / "b", "resnet18", "unet", 1, 0.6, workers=4, cache="disk", data_dir="elsewhere")
    write_run(tmp_path / "c", "resnet18", "unet", 0, 0.7, lr=0.01, head_options={"b": 1, "a": [1, 2]})
    write_run(tmp_path / "d", "resnet18", "unet", 1, 0.8, lr=0.01, head_options={"a": [1, 2], "b": 1})
    (table,) = compared(tmp_path).tables
    assert [row.label for row in table.rows] == [
        "resnet18 · unet · head_options {a: [1, 2], b: 1} · lr 0.01",
        "resnet18 · unet · lr 0.001",
    ]
    assert [[run.name for run in row.group.runs] for row in table.rows] == [["c", "d"], ["a", "b"]]
    assert table.differing == ["head_options", "lr"]
    assert not table.remarks  # the fingerprint says that the data are the same


def older(folder: Path) -> None:
    """Take away what earlier versions did not record."""
    results = json.loads((folder / "results.json").read_text())
    del results["training"], results["protocol"]["data_fingerprint"]
    (folder / "results.json").write_text(json.dumps(results))


def test_runs_of_other_global_batches_are_other_rows(tmp_path: Path) -> None:
    """One machine with one GPU and one with eight, and the settings of both say "devices: auto"."""
    write_run(tmp_path / "a", "resnet18", "unet", 0, 0.5, devices="auto")
    write_run(tmp_path / "b", "resnet18", "unet", 1, 0.6, devices="auto")
    write_run(
        tmp_path / "c", "resnet18", "unet", 0, 0.7, devices="auto", training={"global_batch": 64, "device": "H100"}
    )
    write_run(tmp_path / "d", "resnet18", "unet", 1, 0.5, devices="1", strategy="ddp", accelerator="cpu")
    (table,) = compared(tmp_path).tables
    assert {row.label: [run.name for run in row.group.runs] for row in table.rows} == {
        "resnet18 · unet · global_batch 64": ["c"],
        "resnet18 · unet · global_batch 8": ["a", "b", "d"],
    }
    assert "time, images/s and memory were measured on different devices: H100, x86_64" in table.remarks


def test_a_stage_before_with_another_global_batch_is_another_row(tmp_path: Path) -> None:
    for name, batch in (("a", 8), ("b", 32)):
        first = write_run(tmp_path / f"{name}-stage1", "vgg16", "fcn16s", 0, 0.4, training={"global_batch": batch})
        write_run(tmp_path / name, "vgg16", "fcn8s", 0, 0.5, start_from=f"{first}/checkpoints/best.ckpt")
    groups = make_groups([run for run in find_runs([str(tmp_path)]) if run.config["head"] == "fcn8s"])
    assert [[run.name for run in group.runs] for group in groups] == [["a"], ["b"]]


def test_what_older_versions_did_not_record_is_said(tmp_path: Path) -> None:
    for name, seed, settings in (("a", 0, {"devices": "auto"}), ("b", 1, {"devices": "auto", "data_dir": "elsewhere"})):
        older(write_run(tmp_path / name, "resnet18", "unet", seed, 0.5, **settings))
    older(write_run(tmp_path / "c", "resnet18", "unet", 0, 0.4, devices="4", accumulate=2, nodes=2))
    (table,) = compared(tmp_path).tables
    unknown = "resnet18 · unet · accumulate 1 · global_batch 8 x 1 x unknown ranks"
    assert {row.label: [run.name for run in row.group.runs] for row in table.rows} == {
        unknown: ["a", "b"],
        "resnet18 · unet · accumulate 2 · global_batch 128": ["c"],
    }
    assert table.remarks[-1] == (
        f"an older version did not record the number of ranks, so global batches may differ: {unknown}"
    )
    assert any("different folders, taken for the same data: None, elsewhere" in one for one in table.remarks)


def test_runs_from_wandb_are_told_apart_in_the_same_way(tmp_path: Path) -> None:
    """From the server's answers and from offline files alike, which `run_of` reads."""
    runs = []
    for name, more in {
        "a": {},
        "b": {"training": {"global_batch": 64}},
        "c": {"classes": ("background", "street", "<b>tree</b>", "car", "person")},
        "d": {"protocol": {"data_fingerprint": "fedcba9876543210"}},
    }.items():
        folder = write_run(tmp_path / name, "resnet18", "unet", 0, 0.5, **more)
        results = json.loads((folder / "results.json").read_text())
        config = yaml.safe_load((folder / "config.yaml").read_text())
        runs.append(run_of(name, name, config, {"results": results}, []))
    tables = compare(runs, "val").tables
    assert sorted(sorted(run.name for row in table.rows for run in row.group.runs) for table in tables) == [
        ["a", "b"], ["c"], ["d"],
    ]  # fmt: skip
    assert len(tables[0].rows) == 2
    street, other = sorted((table.remarks for table in tables[1:]), key=len, reverse=True)
    assert list(street) == [
        "differs from the first table in: classes",
        "classes here: background, street, <b>tree</b>, car, person",
    ]
    assert list(other) == ["differs from the first table in: fingerprint"]


NAMES = ("pipe [leak]", "valve [/closed]", "[red]car[/red]", ":car: `x` <b>a|b</b> [l](http://a) & _c_")


def test_brackets_and_codes_in_names_are_shown_as_they_are(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "[train] set"
    for name, head in (("[/a] run", "unet"), ("b", "fcn8s")):
        write_run(folder / name, "resnet18", head, 0, 0.5, classes=NAMES)
    write_run(folder / "[/c]", "resnet18", "unet", 1, 0.5, done=False)
    assert main([str(folder), "--markdown", str(tmp_path / "a.md")]) == 0
    printed = capsys.readouterr().out
    for name in NAMES:
        assert name in printed
    assert f"{folder}/[/c]" in printed
    line = next(line for line in (tmp_path / "a.md").read_text().splitlines() if ":car:" in line)
    assert line.startswith(r"| :car: \`x\` \<b\>a\|b\</b\> \[l\](http://a) &amp; \_c\_ |")


def test_seeds_of_staged_runs_stay_together(tmp_path: Path) -> None:
    for lr in (0.001, 0.002):
        for seed in range(2):
            first = write_run(tmp_path / f"{lr}-{seed}-stage1", "vgg16", "fcn16s", seed, 0.4, lr=lr)
            start = f"moved/since/{first.name}/checkpoints/best.ckpt"
            write_run(tmp_path / f"{lr}-{seed}", "vgg16", "fcn8s", seed, 0.5, start_from=start)
    groups = make_groups([run for run in find_runs([str(tmp_path)]) if run.config["head"] == "fcn8s"])
    assert [[run.name for run in group.runs] for group in groups] == [["0.001-0", "0.001-1"], ["0.002-0", "0.002-1"]]
    assert len({group.label for group in groups}) == 2


def test_a_seed_run_twice_counts_once(tmp_path: Path) -> None:
    for name, seed, miou in (("a", 0, 0.4), ("b", 0, 0.6), ("c", 1, 0.7)):
        write_run(tmp_path / name, "resnet18", "unet", seed, miou)
    (table,) = compared(tmp_path).tables
    assert table.rows[0].score
    assert (table.rows[0].score.mean, table.rows[0].score.n) == (pytest.approx(0.6), 2)
    assert any("some seeds ran more than once" in one for one in table.remarks)


def test_a_baseline_is_found_by_run_or_group(grid: Path) -> None:
    for name in ("resnet50-fcn8s-1", "resnet50 · fcn8s"):
        large, small = compared(grid, baseline=name).tables
        assert large.baseline == "resnet50 · fcn8s"
        row = large.rows[0]
        base = next(one for one in large.rows if one.label == large.baseline)
        assert row.difference
        assert row.score
        assert base.score
        assert row.difference.mean == pytest.approx(row.score.mean - base.score.mean)
        assert row.class_differences["car"].n == 3
        assert any("no group is called" in one for one in small.remarks)


def test_other_scores_and_orders(grid: Path) -> None:
    loss = compared(grid, split="test", metric="loss").tables[0]
    means = [row.score.mean for row in loss.rows if row.score]
    assert means == sorted(means)
    assert loss.rows[0].label == "vgg16 · unet"
    cheap = compared(grid, sort="gmacs").tables[0].rows
    assert [row.costs["gmacs"] for row in cheap] == sorted(row.costs["gmacs"] for row in cheap)
    assert [row.label for row in compared(grid, sort="throughput").tables[0].rows] == [row.label for row in cheap]
    assert [row.label for row in compared(grid, sort="name").tables[0].rows] == sorted(row.label for row in cheap)


def test_the_front_is_what_nothing_beats(tmp_path: Path) -> None:
    points = {"a": (0.5, 1.0), "b": (0.6, 2.0), "c": (0.55, 3.0), "d": (0.5, 1.0), "e": (0.4, 1.0), "f": (0.6, 2.5)}
    for name, (miou, gmacs) in points.items():
        write_run(tmp_path / name, name, "unet", 0, miou, gmacs=gmacs)
    (table,) = compared(tmp_path).tables
    assert {row.group.runs[0].name for row in table.rows if row.on_front} == {"a", "b", "d"}


def test_csv_holds_every_number(grid: Path) -> None:
    comparison = compared(grid)
    rows = list(csv.DictReader(io.StringIO(csv_text(comparison))))
    expected = [row for table in comparison.tables for row in table.rows]
    assert len(rows) == len(expected) == 7
    for cells, row in zip(rows, expected, strict=True):
        assert cells["group"] == row.label
        assert row.score
        assert float(cells["mean"]) == row.score.mean
        assert float(cells["iou/car"]) == row.classes["car"].mean
        assert int(cells["params"].split(".")[0]) == row.costs["params"]
        if row.difference:
            assert [float(cells[name]) for name in ("difference", "low", "high")] == [
                row.difference.mean, row.difference.low, row.difference.high,
            ]  # fmt: skip
    assert rows[0]["runs"] == "vgg16-unet-0 vgg16-unet-1 vgg16-unet-2"
    assert {rows[0]["table"], rows[-1]["table"]} == {"1", "2"}


def test_markdown_holds_tables_protocols_and_the_unranked(grid: Path) -> None:
    comparison = compared(grid)
    text = markdown(comparison)
    best = comparison.tables[0].rows[0]
    assert best.score
    assert (
        f"| vgg16 · unet | 3 | {best.score.mean:.4f} ± {best.score.std:.4f} | baseline | 3 | 33.00 M | 3.300 | 3:19 |"
        in text
    )
    assert "image" in text
    assert text.count("\n## data camvid") == 2
    assert "size 12 x 16" in text
    assert "Student t interval" in text
    assert "half is broken: results.json is no JSON, or half of it" in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.count("|") == table[0].count("|") for line in table[:8])


def test_the_terminal_shows_it_all(grid: Path, capsys) -> None:
    assert main([str(grid), "--csv", str(grid / "all.csv"), "--markdown", str(grid / "all.md")]) == 0
    out = capsys.readouterr().out
    assert "95 % Student t interval" in out
    for words in (("going", "unfinished", "epoch 2 of 2"), ("half", "broken"), ("thesis", "foreign", "no config.yaml")):
        assert any(all(word in line for word in words) for line in out.splitlines())
    assert (grid / "all.csv").read_text() == csv_text(compared(grid))
    assert (grid / "all.md").read_text() == markdown(compared(grid))
    assert not list(grid.glob("*.part"))


def spoil(folder: Path, how: str) -> None:
    results, config = folder / "results.json", folder / "config.yaml"
    there = json.loads(results.read_text())
    if how == "half a results.json":
        results.write_text(results.read_text()[:300])
    elif how == "a list":
        results.write_text("[1, 2]")
    elif how == "no scores":
        del there["scores"]
        results.write_text(json.dumps(there))
    elif how == "words for scores":
        there["scores"]["val"]["miou"] = "good"
        results.write_text(json.dumps(there))
    elif how == "no protocol":
        results.write_text(json.dumps(there | {"protocol": None}))
    elif how == "no config.yaml":
        config.unlink()
    elif how == "an empty config.yaml":
        config.write_text("")
    elif how == "no YAML":
        config.write_text("backbone: [resnet18\n")
    elif how == "a folder in its place":
        config.unlink()
        config.mkdir()
    elif how == "bytes":
        results.write_bytes(b"\xff\xfe\x00")
    elif how == "words in metrics.csv":
        (folder / "metrics.csv").write_text("epoch,val/miou\n1,good\n")
    elif how == "half an index":
        (folder / "predictions" / "index.json").write_text("{")


BROKEN = {
    "half a results.json": "results.json is no JSON, or half of it",
    "a list": "results.json has no 'scores'",
    "no scores": "results.json has no 'scores'",
    "words for scores": "results.json: the scores of val are not numbers by name",
    "no protocol": "results.json has no 'protocol'",
    "no config.yaml": "config.yaml is missing",
    "an empty config.yaml": "config.yaml holds no settings of run.py",
    "no YAML": "config.yaml is no YAML",
    "a folder in its place": "Is a directory",
    "bytes": "results.json is no JSON, or half of it",
    "words in metrics.csv": "metrics.csv is no table of numbers",
    "half an index": "index.json is no JSON, or half of it",
}


@pytest.mark.parametrize("how", BROKEN)
def test_broken_folders_are_named_with_the_reason(how: str, tmp_path: Path, capsys) -> None:
    write_run(tmp_path / "good", "resnet18", "unet", 0, 0.5)
    spoil(write_run(tmp_path / "bad", "resnet18", "unet", 1, 0.6), how)
    run = read_run(tmp_path / "bad")
    assert run.state == "broken"
    assert BROKEN[how] in run.reason
    assert main([str(tmp_path)]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if f"{tmp_path}/bad" in line)
    assert "broken" in line


def test_nothing_that_a_file_may_hold_is_a_crash(tmp_path: Path) -> None:
    """Runs with a random part of a random file cut, doubled or overwritten, compared and written as a page."""
    from experiments.comparing.as_html import page

    original = write_run(tmp_path / "good", "resnet18", "unet", 0, 0.5)
    generator = random.Random(0)
    paths = sorted(path.relative_to(original) for path in original.rglob("*") if path.is_file())
    pieces = [b"", b"\x00", b"null", b"[]", b"{}", b"-1", b"1e999", b"NaN", b'"', b"\n", b": ", b"\xff"]
    for number in range(150):
        copy = tmp_path / "runs" / str(number)
        shutil.copytree(original, copy)
        path = copy / generator.choice(paths)
        content = path.read_bytes()
        start = generator.randrange(len(content))
        path.write_bytes(content[:start] + generator.choice(pieces) + content[start + generator.randrange(40) :])
    values: list[Any] = [None, -1, 1e308, "x", [], {}, [1, "x"], {"x": {"y": None}}, True]
    results = json.loads((original / "results.json").read_text())
    for name in (*results, *(f"protocol/{name}" for name in results["protocol"])):
        for index, value in enumerate(values):
            copy = tmp_path / "runs" / f"{name}-{index}".replace("/", "-")
            shutil.copytree(original, copy)
            changed = json.loads(json.dumps(results))
            (changed["protocol"] if "/" in name else changed)[name.split("/")[-1]] = value
            (copy / "results.json").write_text(json.dumps(changed))
    comparison = compared(tmp_path / "runs")
    assert sum(len(row.group.runs) for table in comparison.tables for row in table.rows) > 50
    assert len(comparison.others) > 50
    assert markdown(comparison)
    assert csv_text(comparison)
    assert page(comparison)


def test_settings_of_any_kind_make_a_key(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "resnet18", "unet", 0, 0.5, head_options={1: "a", "b": None})
    path = write_run(tmp_path / "b", "resnet18", "unet", 0, 0.5) / "config.yaml"
    path.write_text(path.read_text() + yaml.safe_dump({"since": "2026-01-01"}).replace("'", ""))  # a date
    (table,) = compared(tmp_path).tables
    assert {row.label for row in table.rows} == {
        'resnet18 · unet · head_options {1: "a", b: null}',
        "resnet18 · unet · since 2026-01-01",
    }


def test_unfinished_runs_say_how_far_they_are(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", "resnet18", "unet", 0, 0.5, epochs=4, done=False)
    assert read_run(folder).reason == "epoch 4 of 4 is done"
    (folder / "metrics.csv").unlink()
    run = read_run(folder)
    assert (run.state, run.reason) == ("unfinished", "no epoch is done")


def test_runs_in_folders_below_are_found(tmp_path: Path) -> None:
    """Such as those of tune.py in runs/tune; not what lies within a run, and no deeper than is said."""
    write_run(tmp_path / "runs" / "a", "resnet18", "unet", 0, 0.5)
    write_run(tmp_path / "runs" / "a" / "copy", "resnet18", "unet", 0, 0.5)
    write_run(tmp_path / "runs" / "tune" / "trial-0", "resnet18", "unet", 1, 0.5)
    write_run(tmp_path / "runs" / "by" / "date" / "monday" / "b", "resnet18", "unet", 2, 0.5)
    write_run(tmp_path / "runs" / "too" / "far" / "down" / "to" / "c", "resnet18", "unet", 3, 0.5)
    (tmp_path / "runs" / "tune" / "plots").mkdir()
    (tmp_path / "runs" / "tune" / "round").symlink_to(tmp_path / "runs")
    runs = {run.where.removeprefix(f"{tmp_path}/runs/"): run.state for run in find_runs([str(tmp_path / "runs")])}
    assert runs == {
        "a": "finished", "by/date/monday/b": "finished", "too": "foreign", "tune/trial-0": "finished",
    }  # fmt: skip


def test_a_run_folder_may_be_given_itself_and_twice(grid: Path) -> None:
    runs = list(find_runs([str(grid / "small"), str(grid), f"{grid}/../{grid.name}/half"]))
    assert len(runs) == len({run.name for run in runs}) == 22


MISTAKES = {
    "nowhere": "nowhere: no such folder; give run folders or folders of run folders",
    "{grid} --metric mio": "--metric mio: no run has that score of val; nearest: miou",
    "{grid} --split val_crf": "--split val_crf: no run has scores of it; there are val, test",
    "{grid} --baseline resnet50-fcn8s-7": "resnet50-fcn8s-7: no finished run or group is called so; nearest: resnet50",
    "{grid} --sort speed": "--sort: speed is not one of score, name, best_epoch, params",
    "{grid} --html nowhere/page.html": "--html nowhere/page.html: there is no folder nowhere",
    "{grid} --table x": "no flag --table; nearest: ",
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_mistakes_are_one_line(arguments: str, grid: Path, capsys) -> None:
    try:
        code = main(arguments.format(grid=grid).split())
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2
    error = capsys.readouterr().err
    assert error.startswith("compare.py: error: ")
    assert error.count("\n") == 1
    assert MISTAKES[arguments] in error


def test_no_plotly_is_said_before_anything_is_read(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("experiments.compare.find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        main(["nowhere", "--html", "page.html"])
    assert capsys.readouterr().err == (
        'compare.py: error: --html draws with plotly, which is not installed: pip install -e ".[compare]"\n'
    )


def test_comparing_imports_no_torch(grid: Path, tmp_path: Path) -> None:
    arguments = [str(grid), "--html", str(tmp_path / "page.html")]
    code = f"import sys, experiments.compare as compare\ncompare.main({arguments!r})\n"
    code += "assert not {'torch', 'lightning', 'matplotlib', 'plotly.graph_objects'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_only_unfinished_runs_are_listed_too(tmp_path: Path, capsys) -> None:
    write_run(tmp_path / "a", "resnet18", "unet", 0, 0.5, done=False)
    assert main([str(tmp_path), "--metric", "miou", "--html", str(tmp_path / "page.html")]) == 0
    assert "epoch 3 of 3 is done" in capsys.readouterr().out


def test_curves_are_means_by_epoch(grid: Path) -> None:
    runs = [read_run(grid / f"vgg16-unet-{seed}") for seed in range(3)]
    curve = mean_curve(runs, "val/miou")
    assert list(curve) == [1, 2, 3]
    assert curve[2].mean == pytest.approx(np.mean([run.curve[1]["val/miou"] for run in runs]))
    assert curve[2].std == pytest.approx(np.std([run.curve[1]["val/miou"] for run in runs], ddof=1))
    assert sparkline([0.0, 0.5, 1.0, 0.0]) == "▁▅█▁"
    assert len(sparkline(list(range(100)))) == 12
    assert (sparkline([]), sparkline([1.0, 1.0])) == ("", "▁▁")


def test_durations() -> None:
    assert [duration(seconds) for seconds in (3.4, 277, 3600, 86399.6)] == ["0:03", "4:37", "1:00:00", "24:00:00"]
