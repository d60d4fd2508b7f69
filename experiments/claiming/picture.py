"""The picture of a claim: the arms' values, each seed a dot, and the differences that decide, with their intervals."""

import io
from collections.abc import Sequence
from typing import Any

from experiments.claiming.claim import Claim, is_counted
from experiments.claiming.verdict import Finding, Values, Verdict
from experiments.comparing.means import interval

COLOURS: dict[Verdict, str] = {"holds": "#1a7f4b", "does not hold": "#b3382c", "undecided": "#66727f"}
INK = "#1f5fbf"


def draw(claim: Claim, values: Values, findings: Sequence[Finding]) -> bytes:
    """A PNG with a row for each measure: values of the arms on the left, differences on the right."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    measures = list(dict.fromkeys(finding.relation.measure for finding in findings))
    figure, rows = plt.subplots(
        len(measures), 2, figsize=(11, 0.6 + 2.6 * len(measures)), squeeze=False, layout="constrained"
    )
    for measure, (left, right) in zip(measures, rows, strict=True):
        draw_values(left, measure, values)
        draw_differences(right, [one for one in findings if one.relation.measure == measure])
    figure.suptitle(claim.statement, fontsize=11, wrap=True)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    plt.close(figure)
    return file.getvalue()


def draw_values(axes: Any, measure: str, values: Values) -> None:
    """Dots for the seeds; the mean with its 95 % interval beside them. Bars for what is counted."""
    arms = [arm for arm in values if measure in values[arm]]
    numbers = [list(values[arm][measure].values()) for arm in arms]
    if is_counted(measure):
        bars = axes.bar(range(len(arms)), [one[0] for one in numbers], color=INK, width=0.5)
        axes.bar_label(bars, [short(one[0]) for one in numbers], fontsize=8)
        axes.margins(y=0.15)
        axes.yaxis.set_major_formatter(lambda value, _: short(value))
    for place, several in enumerate(numbers if not is_counted(measure) else []):
        if not several:
            continue
        mean, half = interval(several)
        axes.plot([place - 0.12] * len(several), several, "o", color=INK, alpha=0.5, markersize=4)
        axes.errorbar(place + 0.08, mean, half, fmt="_", color="#1f2933", capsize=4, markersize=12)
    axes.set_xticks(range(len(arms)), arms, rotation=0 if len(arms) < 5 else 20, fontsize=9)
    axes.set_xlim(-0.6, len(arms) - 0.4)
    axes.set_ylabel(measure)
    axes.grid(axis="y", alpha=0.3)


def short(number: float) -> str:
    """Such as 67, 4.23 M or 4.87 G."""
    for factor, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(number) >= factor:
            return f"{number / factor:.3g}{unit}"
    return f"{number:.3g}"


def draw_differences(axes: Any, findings: Sequence[Finding]) -> None:
    """What is above zero if the relation holds; relations of counted numbers are text alone."""
    for place, one in enumerate(findings):
        colour, difference = COLOURS[one.verdict], one.difference
        if difference is not None:
            half = 0.0 if difference.high is None else difference.high - difference.mean
            axes.errorbar(difference.mean, place, xerr=half, fmt="o", color=colour, capsize=4)
        axes.annotate(
            f"{one.relation.text}: {one.verdict}", (0.02, place - 0.22), xycoords=("axes fraction", "data"),
            color=colour, fontsize=9, va="bottom",
        )  # fmt: skip
    axes.set_ylim(len(findings) - 0.5, -0.6)
    axes.set_yticks([])
    if any(one.difference is not None for one in findings):
        axes.axvline(0, color="#1f2933", linewidth=0.8)
        axes.set_xlabel("difference, 95 % interval; above 0 if it holds", fontsize=9)
        axes.margins(x=0.15)
    else:
        axes.axis("off")
