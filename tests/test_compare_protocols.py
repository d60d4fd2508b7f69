"""Which runs compare.py puts into one table and one row: those of one protocol, and of one setting."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from experiments.compare import main
from experiments.comparing.groups import make_groups
from experiments.comparing.tables import Comparison, compare
from experiments.run_files.read_run import find_runs
from experiments.run_files.wandb_runs import run_of
from tests.fake_runs import write_grid, write_run


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_grid(tmp_path_factory.mktemp("compare") / "runs")


def compared(folder: Path, **more: Any) -> Comparison:
    return compare(find_runs([str(folder)]), **{"split": "val", **more})


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
