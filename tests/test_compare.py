"""compare.py against folders of every state, and its answers to mistakes."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments.compare import main
from experiments.comparing.as_text import csv_text, markdown
from experiments.comparing.tables import Comparison, compare
from experiments.run_files.read_run import find_runs, read_run
from tests.fake_runs import write_grid, write_run

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_grid(tmp_path_factory.mktemp("compare") / "runs")


def compared(folder: Path, **more: Any) -> Comparison:
    return compare(find_runs([str(folder)]), **{"split": "val", **more})


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
