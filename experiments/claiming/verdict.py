"""What the runs of a claim say about it: holds, does not hold, or undecided at this size. Imports no torch.

A relation between scores holds only if the 95 % interval of its paired difference lies above zero; it does not hold if
the interval lies below; otherwise, and with a single seed, it is undecided. Of numbers that are counted, it holds or
does not. A claim holds if all of its relations hold, and does not hold if any of them does not.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from experiments.claiming.claim import Cell, Claim, is_counted
from experiments.claiming.relation import Relation, Value
from experiments.comparing.means import Difference, paired_difference
from experiments.run_files.read_run import Run, read_run

Verdict = Literal["holds", "does not hold", "undecided"]
Values = Mapping[str, Mapping[str, Mapping[int, float]]]
"""By arm, measure and seed; what is counted is under seed 0."""


@dataclass(frozen=True)
class Finding:
    """What was found about one relation."""

    relation: Relation
    verdict: Verdict
    difference: Difference | None
    """What is above zero if the relation holds, paired by seed; None if nothing was scored, or if it is counted."""

    @property
    def said(self) -> str:
        """The numbers in a few words."""
        if self.difference is None:
            return "counted" if is_counted(self.relation.measure) else "no scores"
        one = self.difference
        if one.low is None or one.high is None:
            return f"{one.mean:+.3g}, one seed"
        return f"{one.mean:+.3g} [{one.low:+.3g}, {one.high:+.3g}], {one.n} seeds"


def find(claim: Claim, values: Values) -> list[Finding]:
    """The finding of each relation."""
    return [judge(relation, values) for relation in claim.holds_if]


def judge(relation: Relation, values: Values) -> Finding:
    if is_counted(relation.measure):
        holds = relation.holds(of_seed(values, 0))
        return Finding(relation, "holds" if holds else "does not hold", None)
    there = [values.get(arm, {}).get(measure, {}) for arm, measure in relation.values]
    seeds = set.intersection(*(set(one) for one in there))
    differences = {seed: relation.difference(of_seed(values, seed)) for seed in seeds}
    difference = paired_difference(differences, dict.fromkeys(seeds, 0.0))
    if difference is None or not difference.is_clear:
        return Finding(relation, "undecided", difference)
    return Finding(relation, "holds" if difference.mean > 0 else "does not hold", difference)


def of_seed(values: Values, seed: int) -> Value:
    return lambda arm, measure: values[arm][measure][seed]


def overall(findings: list[Finding]) -> Verdict:
    verdicts = {one.verdict for one in findings}
    if "does not hold" in verdicts:
        return "does not hold"
    return "undecided" if "undecided" in verdicts else "holds"


def gather(claim: Claim, cells: list[Cell], count: Callable[[str, Mapping[str, Any]], float]) -> Values:
    """The values that the claim's relations compare: scores from the run folders, the others by `count`."""
    wanted = dict.fromkeys(value for relation in claim.holds_if for value in relation.values)
    runs = {(cell.arm, cell.seed): read_run(Path(cell.folder)) for cell in cells}
    values: dict[str, dict[str, dict[int, float]]] = {}
    for arm, measure in wanted:
        of_arm = values.setdefault(arm, {})
        if is_counted(measure):
            of_arm[measure] = {0: count(measure, claim.full(arm))}
            continue
        scores = {seed: score_of(run, measure) for (one, seed), run in runs.items() if one == arm}
        of_arm[measure] = {seed: score for seed, score in scores.items() if score is not None}
    return values


def score_of(run: Run, measure: str) -> float | None:
    """A score of a finished run, such as "test/top1"; those of "train" are of the last epoch."""
    split, _, name = measure.partition("/")
    if run.state != "finished":
        return None
    if split == "train":
        return run.curve[-1].get(measure) if run.curve else None
    return run.scores.get(split, {}).get(name)
