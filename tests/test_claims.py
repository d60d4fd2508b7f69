"""claims.py: its files, its verdicts on made-up numbers, resuming, a broken run, and one claim from start to end."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from experiments.claiming import runs
from experiments.claiming.claim import COUNTED, Claim, cells_of, check_cells, find_claims, known_claims, read_claim
from experiments.claiming.measured import measure_arm, network_of, size_of
from experiments.claiming.page import Result, markdown, page
from experiments.claiming.relation import Relation, read_relation
from experiments.claiming.verdict import find, judge, overall
from experiments.claims import main
from experiments.command_line.parser import Parser
from lightning_modules.shapes_only import ShapesOnly
from tests.fake_claim_run import fake_run

CLAIMS = find_claims(known_claims())
TINY = {
    "statement": "Two <b>steps</b> of a tiny network are better than one.",
    "source": "nobody",
    "minutes": 1,
    "settings": {"backbone": "resnet20", "head": "classifier", "image_size": 16, "batch_size": 8},
    "arms": {
        "one": {"backbone_options": {"depth": 8, "width": 2}, "max_steps": 1},
        "two": {"backbone_options": {"depth": 8, "width": 2}, "max_steps": 2},
    },
    "holds_if": [{"test/loss": "two < one"}, {"train/loss_epoch": "two < one"}, {"params": "one == two"}],
}


def write_claim(folder: Path, name: str = "tiny", **changes: Any) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(TINY | changes), encoding="utf-8")
    return path


# The files


def test_files_are_complete_and_short_enough() -> None:
    for claim in CLAIMS:
        assert re.search(r"arXiv:\d{4}\.\d{4}|doi:|NeurIPS", claim.source), claim.name
        assert claim.minutes <= 4, claim.name
        assert (claim.minutes == 0) == (not claim.trained), claim.name
        used = {arm for relation in claim.holds_if for arm, _ in relation.values}
        assert used == set(claim.arms), claim.name
    assert len(CLAIMS) >= 40
    assert sum(claim.minutes for claim in CLAIMS) <= 75


def test_run_py_takes_the_flags_of_every_arm(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    cells = [cell for claim in CLAIMS for cell in cells_of(claim, tmp_path, 1, str(tmp_path))]
    assert len(cells) > 70
    check_cells(cells, Parser("claims.py", ""))
    assert len({cell.folder for cell in cells}) == len(cells)


@pytest.mark.parametrize("claim", [one for one in CLAIMS if one.trained], ids=lambda one: one.name)
def test_the_networks_of_a_claim_take_its_images(claim: Claim) -> None:
    for arm in claim.arms:
        settings = claim.full(arm)
        with torch.device("meta"):
            network = network_of(settings)
        size = size_of({"image_size": 64 if network.task == "segmentation" else 32} | settings)
        with ShapesOnly(), torch.no_grad():
            network.train().forward_with_aux(torch.empty(settings["batch_size"], 3, *size, device="meta"))


@pytest.mark.parametrize("name", ["vgg-field", "dilation-fields", "checkerboard", "residual-bottleneck"])
def test_counted_claims_hold(name: str) -> None:
    (claim,) = find_claims([name])
    values = {
        arm: {measure: {0: measure_arm(measure, claim.full(arm))} for measure in COUNTED}
        for arm in claim.arms
        if name == "checkerboard" or "up" not in str(claim.arms[arm])
    }
    assert {finding.verdict for finding in find(claim, values)} == {"holds"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"holds_if": [{"test/loss": "three < one"}]}, "'three < one' names three; the arms are one, two"),
        ({"holds_if": [{"test/loss": "one"}]}, "'one' is no comparison by >, < or =="),
        ({"holds_if": [{"test/loss": "0 < one < two"}]}, "measured scores are compared by one > or <"),
        ({"holds_if": [{"params": "one < open('x')"}]}, "'open.'x'.' is no arm, no number and no sum"),
        ({"holds_if": [{"params": "1 < 2"}]}, "compares no arms"),
        ({"holds_if": [{"params": "one <"}]}, "is no comparison such as one > other"),
        ({"hold_if": 1}, "no key 'hold_if'; nearest: holds_if"),
        ({"source": ""}, "'source' is missing"),
    ],
)
def test_a_wrong_file_is_one_line(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as error:
        read_claim(write_claim(tmp_path, **changes))
    assert "\n" not in str(error.value)


# Verdicts


def relation(text: str, measure: str = "test/top1") -> Relation:
    return read_relation(measure, text, ["a", "b", "c", "d"], exact=measure in COUNTED)


def scores(**arms: list[float]) -> dict[str, dict[str, dict[int, float]]]:
    return {arm: {"test/top1": dict(enumerate(several))} for arm, several in arms.items()}


@pytest.mark.parametrize(
    ("text", "values", "verdict"),
    [
        ("a > b", scores(a=[0.9, 0.8, 0.7], b=[0.8, 0.69, 0.61]), "holds"),  # pairs differ by 0.1, seeds by more
        ("a < b", scores(a=[0.9, 0.8, 0.7], b=[0.8, 0.69, 0.61]), "does not hold"),
        ("a > b", scores(a=[0.9, 0.8, 0.7], b=[0.8, 0.81, 0.61]), "undecided"),
        ("a > b", scores(a=[0.9], b=[0.1]), "undecided"),  # one seed
        ("a > b", scores(a=[0.9, 0.8, 0.7], b=[]), "undecided"),  # all runs of b have failed
        ("a > b", scores(a=[0.5, 0.5], b=[0.5, 0.5]), "undecided"),
        ("a - b > c - d", scores(a=[3, 4], b=[1, 2], c=[1.5, 1.6], d=[1, 1.1]), "holds"),
        ("a / 2 > b", scores(a=[3, 3.1], b=[2, 2.05]), "does not hold"),
    ],
)
def test_verdicts_of_scores(text: str, values: dict[str, Any], verdict: str) -> None:
    assert judge(relation(text), values).verdict == verdict


def test_the_numbers_of_a_verdict_are_student_s() -> None:
    found = judge(relation("a > b"), scores(a=[0.3, 0.5, 0.7], b=[0.2, 0.3, 0.4])).difference
    assert found is not None
    assert (found.mean, found.n) == (pytest.approx(0.2), 3)
    assert found.high - found.mean == pytest.approx(4.3027 * 0.1 / 3**0.5, rel=1e-4)


def test_counted_numbers_need_no_seeds_and_another_measure_can_be_named() -> None:
    counted = {arm: {"params": {0: number}} for arm, number in (("a", 7), ("b", 7), ("c", 60))}
    assert judge(relation("a == b == 7", "params"), counted).verdict == "holds"
    assert judge(relation("8 < c / a < 8.5", "params"), counted).verdict == "does not hold"
    both = {"a": {"test_crf/miou": {0: 0.6, 1: 0.7}, "test/miou": {0: 0.5, 1: 0.59}}}
    assert judge(relation("a > a[test/miou]", "test_crf/miou"), both).verdict == "holds"


def test_a_claim_holds_if_all_relations_do() -> None:
    holds, fails, open_ = (
        judge(relation(text), scores(a=[2, 2.1, 2.2], b=[1, 1.1, 1.2], c=[1, 3, 2]))
        for text in ("a > b", "b > a", "a > c")
    )
    assert overall([holds, holds]) == "holds"
    assert overall([holds, open_]) == "undecided"
    assert overall([holds, open_, fails]) == "does not hold"


# Runs


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for the results of the only claim that there is."""
    (tmp_path / "files").mkdir()
    monkeypatch.setattr("experiments.claiming.claim.FOLDER", tmp_path / "files")
    write_claim(tmp_path / "files")
    return tmp_path / "out"


def test_a_claim_from_its_file_to_the_page(tiny: Path, capsys: pytest.CaptureFixture) -> None:
    """Stands before the next test: that one's processes are forked from the server that this one starts."""
    assert main(["tiny", "--seeds", "1", "--out", str(tiny)]) == 0
    printed = capsys.readouterr().out
    assert "tiny: undecided at this size" in printed
    found = json.loads((tiny / "tiny" / "claim.json").read_text())
    for arm in ("one", "two"):
        assert found["values"][arm].keys() == {"test/loss", "train/loss_epoch", "params"}
        assert found["values"][arm]["train/loss_epoch"]["0"] > 0
        assert "s of processor time" in (tiny / "tiny" / f"{arm}-s0.log").read_text()
    assert (tiny / "tiny" / "claim.png").read_bytes().startswith(b"\x89PNG")
    assert main(["--page", str(tiny)]) == 0
    text = (tiny / "claims.html").read_text()
    assert "Two &lt;b&gt;steps&lt;/b&gt;" in text
    assert "<b>" not in text
    assert "data:image/png;base64," in text
    assert "| tiny | undecided |" in (tiny / "claims.md").read_text()


def test_a_broken_run_is_one_line_and_the_others_are_not_repeated(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(runs, "work", fake_run)
    command = ["tiny", "--seeds", "3", "--out", str(tiny)]
    assert main(command) == 1
    printed = capsys.readouterr().out
    log = tiny / "tiny" / "two-s1.log"
    (line,) = [line for line in printed.splitlines() if "failed" in line]
    assert line.endswith(f"tiny: two, seed 1: failed, exit code 1: the disk is on fire ({log})")
    assert "test/loss: two < one: holds (+1 [+1, +1], 2 seeds)" in printed
    (tiny / "tiny" / "mended").touch()
    assert main(command) == 0
    calls = (tiny / "tiny" / "calls").read_text().splitlines()
    assert sorted(calls[:6]) == [f"{arm}-s{seed}" for arm in ("one", "two") for seed in range(3)]
    assert calls[6:] == ["two-s1"]
    found = json.loads((tiny / "tiny" / "claim.json").read_text())
    assert (found["verdict"], found["seeds"]) == ("holds", 3)
    assert found["values"]["two"]["train/loss_epoch"] == {"0": -1.0, "1": 0.0, "2": 1.0}
    assert main(command) == 0
    assert len((tiny / "tiny" / "calls").read_text().splitlines()) == 7
    write_claim(tiny.parent / "files", settings=TINY["settings"] | {"lr": 0.1})
    with pytest.raises(SystemExit):
        main(command)
    assert "one-s0 was made with --lr 0.002, not 0.1; give the same settings or another" in capsys.readouterr().err


def test_the_page_counts_verdicts() -> None:
    finding = {"measure": "test/top1", "relation": "a > b", "verdict": "holds", "said": "+0.1 [+0.05, +0.15], 3 seeds"}
    found = {"statement": "s", "source": "x", "note": "n", "verdict": "holds", "findings": [finding], "seconds": 120.0}
    results = [Result("one", found, b""), Result("two", found | {"verdict": "undecided"}, b"")]
    assert "2 claims: 1 hold, 1 are undecided at this size. All runs together took 4 minutes" in page(results)
    assert "`test/top1: a > b` holds (+0.1 [+0.05, +0.15], 3 seeds)" in markdown(results)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["degradatoin"], "no claim 'degradatoin'; nearest: degradation"),
        (["pretrained"], "pretrained needs --data-dir, a folder of train/ and val/"),
        (["degradation", "--seeds", "0"], "--seeds: 0 is not a whole number of at least 1"),
    ],
)
def test_usage_errors(arguments: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_the_list_names_all(capsys: pytest.CaptureFixture) -> None:
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert all(claim.name in printed for claim in CLAIMS)


def test_a_page_of_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["--page", str(tmp_path)]) == 2
    assert "holds no results of claims; run some first" in capsys.readouterr().err
