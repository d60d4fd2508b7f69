"""Try statements of papers by small experiments: `python experiments/claims.py degradation`; without names, list them.

A statement holds, does not hold, or is undecided at this size; never more than was measured. The same command again
skips finished runs and continues the others.
"""

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: import this checkout, not an installed copy, and not this folder's files
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from experiments.claiming.claim import Cell, Claim, cells_of, check_cells, find_claims, known_claims
from experiments.command_line.kinds import PositiveInt
from experiments.command_line.parser import Parser, flag, positional, settings_from
from experiments.command_line.process import run_program
from experiments.run_files.atomic_file import write_atomically
from experiments.run_files.read_run import read_run

WIDTH = 110
"""Columns of the list where the output is no terminal."""


@dataclass
class ClaimsConfig:
    """The order of the fields is the order of `--help`."""

    names: list[str] = positional("claims to try; without any, all are listed", many=True)
    all: bool = flag(False, "try all claims")
    seeds: PositiveInt = flag(3, "seeds of each network, 0 to N - 1; one seed decides nothing")
    out: str = flag("claims", "folder for run folders and results, one folder a claim", path=True)
    jobs: PositiveInt = flag(2, "runs at a time; they share the CPU cores")
    data_dir: str | None = flag(None, "folder of the data set, for the claims that name one", path=True)
    page: str | None = flag(None, "write claims.html and claims.md of all results in this folder, and stop", path=True)


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 1 if a run has failed."""
    parser = Parser("claims.py", "Try statements of papers by small experiments.")
    parser.add_settings(ClaimsConfig)
    config = settings_from(parser.parse_args(arguments), ClaimsConfig)
    if config.page is not None:
        return run_program("claims.py", lambda: write_page(Path(str(config.page))), "nothing was written")
    try:
        claims = find_claims(config.names or known_claims())
    except ValueError as error:
        parser.error(str(error))
    if not config.names and not config.all:
        print_list(claims)
        return 0
    for claim in [claim for claim in claims if claim.data and config.data_dir is None]:
        if claim.name in config.names:
            parser.error(f"{claim.name} needs --data-dir, {claim.data}")
        print(f"{claim.name} is left out: it needs --data-dir, {claim.data}")
        claims.remove(claim)
    cells = [cells_of(claim, Path(config.out), config.seeds, config.data_dir) for claim in claims]
    check_cells([cell for several in cells for cell in several], parser)
    plan = list(zip(claims, cells, strict=True))
    return run_program("claims.py", lambda: try_all(plan, config), "the same command continues")


def print_list(claims: list[Claim]) -> None:
    from rich.table import Table

    from experiments.command_line.console import make_console

    table = Table("claim", "statement", "source", "minutes", show_lines=True)
    for claim in claims:
        table.add_row(claim.name, claim.statement, claim.source, f"{claim.minutes:g}" if claim.trained else "counted")
    make_console(WIDTH).print(table)
    total = sum(claim.minutes for claim in claims)
    print(f"{len(claims)} claims, {total:.0f} minutes on two cores with three seeds: claims.py --all, or their names")


def try_all(plan: list[tuple[Claim, list[Cell]]], config: ClaimsConfig) -> int:
    """Run what is left, then judge each claim. A claim whose runs have failed is judged by those that have not."""
    from experiments.claiming.runs import run_cells

    failed = 0
    for claim, cells in plan:
        code = run_cells(cells, config.jobs)
        if code > 1:
            return code
        failed |= code
        conclude(claim, cells, Path(config.out) / claim.name, config)
    return failed


def conclude(claim: Claim, cells: list[Cell], folder: Path, config: ClaimsConfig) -> None:
    """Judge a claim; write claim.json and claim.png, and print what was found."""
    from experiments.claiming.picture import draw
    from experiments.claiming.verdict import find, gather, overall

    values = gather(claim, cells, count)
    findings = find(claim, values)
    verdict = overall(findings)
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / "claim.png.part"
    part.write_bytes(draw(claim, values, findings))
    part.replace(folder / "claim.png")
    found = {
        "statement": claim.statement,
        "source": claim.source,
        "note": claim.note,
        "verdict": verdict,
        "seeds": config.seeds if claim.trained else 0,
        "findings": [
            {
                "measure": one.relation.measure,
                "relation": one.relation.text,
                "verdict": one.verdict,
                "said": one.said,
                "difference": None if one.difference is None else asdict(one.difference),
            }
            for one in findings
        ],
        "values": values,
        "arms": {arm: claim.full(arm) for arm in claim.arms},
        "seconds": sum(read_run(cell.folder).costs.get("wall_time_s", 0.0) for cell in cells),
        "made": time.strftime("%Y-%m-%d %H:%M"),
    }
    write_atomically(folder / "claim.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    print(f"{claim.name}: {verdict} at this size. {claim.statement}" if claim.trained else f"{claim.name}: {verdict}.")
    for one in findings:
        print(f"  {one.relation.measure}: {one.relation.text}: {one.verdict} ({one.said})", flush=True)


def count(measure: str, settings: Mapping[str, Any]) -> float:
    """A number of an arm that needs no training. Imports torch, which most claims need only in their runs."""
    from experiments.claiming.measured import measure_arm

    return measure_arm(measure, settings)


def write_page(folder: Path) -> None:
    """Write the page and the table of all results in the folder."""
    from experiments.claiming.page import markdown, page, read_results

    results = read_results(folder)
    for name, text in (("claims.html", page(results)), ("claims.md", markdown(results))):
        write_atomically(folder / name, text)
        print(folder / name)


if __name__ == "__main__":
    sys.exit(main())
