"""What compare.py shows: orders, baselines, CSV, Markdown and the terminal."""

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from experiments.compare import main
from experiments.comparing.as_text import csv_text, markdown
from experiments.comparing.tables import Comparison, compare
from experiments.run_files.read_run import find_runs
from tests.fake_runs import write_grid, write_run


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_grid(tmp_path_factory.mktemp("compare") / "runs")


def compared(folder: Path, **more: Any) -> Comparison:
    return compare(find_runs([str(folder)]), **{"split": "val", **more})


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


def test_only_unfinished_runs_are_listed_too(tmp_path: Path, capsys) -> None:
    write_run(tmp_path / "a", "resnet18", "unet", 0, 0.5, done=False)
    assert main([str(tmp_path), "--metric", "miou", "--html", str(tmp_path / "page.html")]) == 0
    assert "epoch 3 of 3 is done" in capsys.readouterr().out
