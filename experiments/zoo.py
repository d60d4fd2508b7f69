"""Write the model zoo, a Markdown page of trained networks: `python experiments/zoo.py runs --out zoo.md`."""

import sys
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # started as a file: import this checkout, not an installed copy, and not this folder's files
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from experiments.command_line.parser import Parser, flag, positional, settings_from
from experiments.command_line.process import run_program
from experiments.comparing.zoo import zoo
from experiments.run_files.atomic_file import write_atomically
from experiments.run_files.read_run import DEPTH, find_runs


@dataclass
class ZooConfig:
    """The order of the fields is the order of `--help`."""

    runs: list[str] = positional(
        f"run folders, or folders that hold run folders at most {DEPTH} levels below; default: runs",
        path=True,
        many=True,
    )
    out: str = flag("zoo.md", "Markdown file to write", path=True)


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code; imports no torch."""
    parser = Parser("zoo.py", "Write a Markdown page of trained networks: commands, scores, costs, checksums.")
    parser.add_settings(ZooConfig)
    config = settings_from(parser.parse_args(arguments), ZooConfig)
    if not Path(config.out).parent.is_dir():
        parser.error(f"--out {config.out}: there is no folder {Path(config.out).parent}")

    def work() -> None:
        runs = list(find_runs(config.runs or ["runs"]))
        page = zoo(runs)
        for run in runs:
            if run.state != "finished":
                print(f"left out: {run.where} is {run.state}: {run.reason}", file=sys.stderr)
        write_atomically(Path(config.out), page)
        print(config.out)

    return run_program("zoo.py", work, "nothing was written")


if __name__ == "__main__":
    sys.exit(main())
