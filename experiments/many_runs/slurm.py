"""SLURM jobs and array jobs for runs of run.py: checks, job script and submission."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.command_line.kinds import NonNegativeInt, PositiveInt
from experiments.command_line.known_names import RUN
from experiments.command_line.parser import Parser, flag, settings_from
from experiments.command_line.process import run_program
from experiments.command_line.run_checks import usage_problem
from experiments.command_line.run_config import build_parser
from experiments.command_line.run_flags import RunConfig


@dataclass
class SubmitConfig:
    """The order of the fields is the order of `--help`."""

    nodes: PositiveInt = flag(1, "number of nodes", group="machines")
    gpus_per_node: NonNegativeInt = flag(
        1,
        "GPUs per node, with one rank per GPU; 0: CPU ranks, as many as run.py's --devices. A cluster that takes only "
        "--gres: '--gpus-per-node 0 --sbatch gres=gpu:4 -- --devices 4 --accelerator gpu'",
        group="machines",
    )
    cpus_per_task: PositiveInt | None = flag(
        None, "CPU cores per rank; default: one more than run.py's --workers", group="machines"
    )
    partition: str | None = flag(None, "SLURM partition; default: the cluster's default partition", group="machines")
    time: str = flag(
        "24:00:00",
        "time limit of the job in sbatch's format; shortly before it ends the run saves and is queued again",
        group="job",
    )
    signal_s: PositiveInt = flag(120, "how many seconds before the end of --time the run is told to save", group="job")
    sbatch: list[str] = flag((), "further options of sbatch without dashes: account=lab qos=long mem=64G", group="job")
    setup: str | None = flag(
        None, "shell commands before the run, such as 'module load cuda'; default: none", group="job"
    )
    array: str | None = flag(
        None,
        "queue an array job of the run.py commands in this file, one on each line; default: one run, of the flags "
        "after --",
        group="job",
        path=True,
    )
    at_once: PositiveInt | None = flag(None, "maximum number of --array runs at a time; default: no limit", group="job")
    dry_run: bool = flag(False, "print the job script; download and submit nothing", group="job")


def queue(
    config: SubmitConfig, lines: list[list[str]], parser: Parser, fetch: Callable[[list[RunConfig]], None]
) -> int:
    """Check the runs, fetch what they need and submit them as one job. Returns the exit code.

    Args:
        lines: the arguments of run.py for each run; several make an array job.
        fetch: downloads the weights and data that the runs ask for; called before the job is submitted, if they
            ask for any.
    """
    runs = [run_config_of(line) for line in lines]
    log = log_of(config, runs)
    problems = [*(submission_problem(config, run) for run in runs), array_problem(runs), log_problem(log)]
    problem = next(filter(None, problems), None)
    if problem:
        parser.error(problem)
    text = script(config, lines, runs)
    if config.dry_run:
        print(text, end="")
        return 0
    if shutil.which("sbatch") is None:
        parser.error(
            "there is no sbatch here; submit on a login node of the cluster, or print the script with --dry-run"
        )

    def work() -> int:
        if any(run.weights == "imagenet" or run.download for run in runs):
            fetch(runs)  # imports torch
        return submit(text, log)

    return run_program("submit.py", work, "nothing was submitted")


def lines_of(file: str, parser: Parser) -> list[list[str]]:
    """The arguments of run.py on each line of a file; blank lines and those that begin with # are left out."""
    if not Path(file).is_file():
        parser.error(f"--array {file}: no such file")
    lines = []
    for line in Path(file).read_text(encoding="utf-8").splitlines():
        words = shlex.split(line, comments=True)
        program = next((place for place, word in enumerate(words) if Path(word).name == "run.py"), -1)
        if words:
            lines.append(words[program + 1 :])
    if not lines:
        parser.error(f"--array {file}: it holds no commands")
    return lines


def run_config_of(line: list[str]) -> RunConfig:
    """The settings that run.py would have. Usage errors are reported as those of run.py."""
    parser = build_parser()
    run = settings_from(parser.parse_args(line), RunConfig)
    problem = usage_problem(run)
    if problem:
        parser.error(problem)
    return run


def submission_problem(config: SubmitConfig, run: RunConfig) -> str | None:
    """Why a run cannot be queued, in one line, or None."""
    if run.nodes not in (1, config.nodes):
        return f"--nodes: run.py would wait for {run.nodes} nodes on {config.nodes}; give submit.py --nodes {run.nodes}"
    if run.devices not in ("auto", str(config.gpus_per_node)) and config.gpus_per_node:
        return f"--devices: {run.devices} is not --gpus-per-node {config.gpus_per_node}; leave --devices to submit.py"
    folder = Path(run.out) / run.run_name
    if (folder / "results.json").is_file():
        return f"--name: {folder} holds a finished run; choose another --name"
    return None


def array_problem(runs: list[RunConfig]) -> str | None:
    """Why the lines of `--array` cannot be one job, or None."""
    folders = [Path(run.out) / run.run_name for run in runs]
    twice = next((folder for folder in folders if folders.count(folder) > 1), None)
    if twice is not None:
        return f"--array: two lines would write to {twice}; give each its own --name"
    if len({run.devices for run in runs}) > 1:
        return "--array: the lines differ in --devices, but all runs of an array get the same machines"
    return None


def log_problem(log: Path) -> str | None:
    """Why sbatch would write the output of the job elsewhere, or None."""
    if re.search(r"[\s%\\\"']", str(log)):
        return (
            f"the output of the job would be {log}, but sbatch takes no spaces, quotes, backslashes or % in that path; "
            "choose another --out or --name"
        )
    return None


def script(config: SubmitConfig, lines: list[list[str]], runs: list[RunConfig]) -> str:
    """The job script. Run folders depend on names alone, so that a job that is queued again finds its own folder."""
    ranks = config.gpus_per_node or (1 if runs[0].devices == "auto" else int(runs[0].devices))
    commands = [command(config, line, run, ranks) for line, run in zip(lines, runs, strict=True)]
    parts = [
        "#!/bin/bash",
        *(f"#SBATCH --{name}={value}" for name, value in options(config, runs, ranks).items() if value is not None),
        *(f"#SBATCH --{option}" for option in ("requeue", *config.sbatch)),
        *([config.setup] if config.setup else []),
        "# SLURM's own addresses of the nodes work even where the names of the nodes do not resolve.",
        'export MASTER_ADDR=$(scontrol show node "$SLURMD_NODENAME" | sed -n "s/.*NodeAddr=\\([^ ]*\\).*/\\1/p")',
        'export WANDB_MODE="${WANDB_MODE:-offline}"',
        'case "${SLURM_ARRAY_TASK_ID:-0}" in',
        *(f"{number}) set -- {one} ;;" for number, one in enumerate(commands)),
        "esac",
        'echo "run.py $*"',
        'exec srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \\',
        f'  {shlex.join([sys.executable, str(RUN)])} "$@"',
    ]
    return "\n".join(parts) + "\n"


def options(config: SubmitConfig, runs: list[RunConfig], ranks: int) -> dict[str, Any]:
    """The options of sbatch; None for those that are left out."""
    log = log_of(config, runs)
    made = {
        "job-name": log.name.removesuffix(".log"),
        "partition": config.partition,
        "nodes": config.nodes,
        "ntasks-per-node": ranks,
        "gpus-per-node": config.gpus_per_node or None,
        "cpus-per-task": config.cpus_per_task or max(run.workers for run in runs) + 1,
        "time": config.time,
        "signal": f"USR1@{config.signal_s}",
        "output": log,
        "open-mode": "append",
    }
    if config.array is not None:
        made["array"] = f"0-{len(runs) - 1}" + (f"%{config.at_once}" if config.at_once else "")
        made["output"] = log.with_suffix(".%a.log")
    return made


def command(config: SubmitConfig, line: list[str], run: RunConfig, ranks: int) -> str:
    """The arguments of run.py for one run, quoted for a shell."""
    own = ["--name", run.run_name, "--nodes", str(config.nodes), "--devices", str(ranks)]
    if run.accelerator == "auto":
        own += ["--accelerator", "gpu" if config.gpus_per_node else "cpu"]
    return shlex.join([*line, *own])


def log_of(config: SubmitConfig, runs: list[RunConfig]) -> Path:
    """The log of the job, next to the run folder; the log of an array is named after its file."""
    name = runs[0].run_name if config.array is None else Path(config.array).stem
    return Path(runs[0].out).resolve() / f"{name}.log"


def submit(text: str, log: Path) -> int:
    """Pass the script to sbatch. Returns sbatch's exit code."""
    log.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["sbatch", "--parsable"], input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"submit.py: error: {' '.join(done.stderr.split())}", file=sys.stderr)
        return done.returncode
    job = done.stdout.strip().split(";")[0]
    print(f"job {job}; its output goes to {log}; after scancel {job}, the same command continues the run")
    return 0
