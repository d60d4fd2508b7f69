"""Compare runs: `python experiments/compare.py runs --html compare.html`.

Runs that differ in their seed only are one row: mean and deviation over seeds, and the difference to the best row,
paired by seed, with its confidence interval. Runs under different protocols are never ranked together.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from experiments.comparison import Order, Split, compare
from experiments.config import Parser, add_settings, flag, positional, settings_from
from experiments.outcome import outcome
from experiments.runs import Run, find_runs


@dataclass
class CompareConfig:
    """The order of the fields is the order of `--help`."""

    runs: str = positional("run folders, or folders of run folders", nargs="*", default=["runs"])
    split: Split = flag("val", "which scores; those with a CRF are val_crf and test_crf")
    metric: str | None = flag(None, "which score: pixel_accuracy, iou/CLASS, loss ...; default: miou, or top1")
    baseline: str | None = flag(None, "group, or run in it, that others are compared with; default: the best")
    sort: Order = flag("score", "order of the rows")
    csv: str | None = flag(None, "file to write the numbers to, with all digits")
    markdown: str | None = flag(None, "file to write the tables to")
    html: str | None = flag(None, "file to write one page to, that needs no network and no other file")


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code; imports no torch."""
    parser = Parser(prog="compare.py", description="Compare finished runs.")
    add_settings(parser, CompareConfig)
    config = settings_from(parser.parse_args(arguments), CompareConfig)
    problem = usage_problem(config)
    if problem:
        parser.error(problem)
    return outcome("compare.py", lambda: report(config), "nothing more was written")


def usage_problem(config: CompareConfig) -> str | None:
    for name in ("csv", "markdown", "html"):
        path = getattr(config, name)
        if path is not None and not Path(path).absolute().parent.is_dir():
            return f"--{name} {path}: there is no folder {Path(path).parent}"
    if config.html is not None and find_spec("plotly") is None:
        return '--html draws with plotly, which is not installed: pip install -e ".[compare]"'
    return None


def report(config: CompareConfig) -> None:
    """Print the comparison and write the files asked for."""
    comparison = compare(read_runs(config), config.split, config.metric, config.baseline, config.sort)
    from experiments.compare_text import csv_text, markdown, print_comparison

    print_comparison(comparison)
    if config.csv is not None:
        write(Path(config.csv), csv_text(comparison))
    if config.markdown is not None:
        write(Path(config.markdown), markdown(comparison))
    if config.html is not None:
        from experiments.compare_html import page

        write(Path(config.html), page(comparison))


def read_runs(config: CompareConfig) -> Iterator[Run]:
    """The runs asked for, in whatever state.

    Raises:
        ValueError: there is no such folder.
    """
    yield from find_runs(config.runs)


def write(path: Path, text: str) -> None:
    """Written beside and moved into place: a reader never sees half a file."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
    print(path)


if __name__ == "__main__":
    sys.exit(main())
