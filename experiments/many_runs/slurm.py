"""SLURM: the script of a job or an array job for runs of run.py, and its submission."""

import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jsonargparse.typing import NonNegativeInt, PositiveInt

from experiments.command_line.known_names import RUN
from experiments.command_line.parser import Parser, flag, settings_from
from experiments.command_line.process import run_program
from experiments.command_line.run_config import RunConfig, build_parser, usage_problem


@dataclass
class SubmitConfig:
    """The order of the fields is the order of `--help`."""

    nodes: PositiveInt = flag(1, "machines")
    gpus_per_node: NonNegativeInt = flag(1, "GPUs of each, with a process for each GPU; 0: run.py's --devices on CPUs")
    cpus_per_task: PositiveInt | None = flag(None, "cores of each process; default: run.py's --workers and one more")
    time: str = flag("24:00:00", "until the job is saved and queued again, as sbatch takes it")
    partition: str | None = flag(None, "of the cluster; default: its own")
    signal_s: PositiveInt = flag(120, "seconds before the end of that time at which saving begins")
    sbatch: str = flag((), "further options of sbatch without dashes: account=lab qos=long mem=64G", nargs="+")
    setup: str | None = flag(None, "shell commands before the run, such as 'module load cuda'")
    array: str | None = flag(None, "file with one run.py command a line, in the place of flags after --")
    at_once: PositiveInt | None = flag(None, "runs of --array at a time; default: as many as there is room for")
    dry_run: bool = flag(False, "print the script; fetch and submit nothing")


def queue(
    config: SubmitConfig, lines: list[list[str]], parser: Parser, fetch: Callable[[list[RunConfig]], None]
) -> int:
    """Check the runs, fetch what they need and submit them as one job. Returns the exit code.

    Args:
        lines: the arguments of run.py for each run; several make an array job.
        fetch: downloads the weights and data that the runs ask for; called before the job is submitted.
    """
    runs = [run_config_of(line) for line in lines]
    problem = next(filter(None, (submission_problem(config, run) for run in runs)), None) or array_problem(runs)
    if problem:
        parser.error(problem)
    text = script(config, lines, runs)
    if config.dry_run:
        print(text, end="")
        return 0
    if shutil.which("sbatch") is None:
        parser.error("there is no sbatch here; submit on a login node of the cluster, or look at it with --dry-run")

    def work() -> int:
        fetch(runs)
        return submit(text, log_of(config, runs))

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
    """What run.py would be told. Usage errors are its own."""
    parser = build_parser()
    run = settings_from(parser.parse_args(line), RunConfig)
    problem = usage_problem(run)
    if problem:
        parser.error(problem)
    return run


def submission_problem(config: SubmitConfig, run: RunConfig) -> str | None:
    """Why a run cannot be queued, in one line."""
    if run.nodes not in (1, config.nodes):
        return f"--nodes: run.py would wait for {run.nodes} nodes on {config.nodes}; give submit.py --nodes {run.nodes}"
    if run.devices not in ("auto", str(config.gpus_per_node)) and config.gpus_per_node:
        return f"--devices: {run.devices} is not --gpus-per-node {config.gpus_per_node}; leave --devices to submit.py"
    folder = Path(run.out) / run.run_name
    if (folder / "results.json").is_file():
        return f"--name: {folder} holds a finished run; choose another --name"
    return None


def array_problem(runs: list[RunConfig]) -> str | None:
    """Why the lines of `--array` cannot be one job."""
    folders = [Path(run.out) / run.run_name for run in runs]
    twice = next((folder for folder in folders if folders.count(folder) > 1), None)
    if twice is not None:
        return f"--array: two lines would write to {twice}; give each its own --name"
    if len({run.devices for run in runs}) > 1:
        return "--array: the lines differ in --devices, but all runs of an array get the same machines"
    return None


def script(config: SubmitConfig, lines: list[list[str]], runs: list[RunConfig]) -> str:
    """What sbatch takes. Run folders depend on names alone, so that a job that is queued again finds its own."""
    tasks = config.gpus_per_node or (1 if runs[0].devices == "auto" else int(runs[0].devices))
    options = {
        "job-name": log_of(config, runs).name.removesuffix(".log"),
        "partition": config.partition,
        "nodes": config.nodes,
        "ntasks-per-node": tasks,
        "gpus-per-node": config.gpus_per_node or None,
        "cpus-per-task": config.cpus_per_task or max(run.workers for run in runs) + 1,
        "time": config.time,
        "signal": f"USR1@{config.signal_s}",
        "output": log_of(config, runs),
        "open-mode": "append",
    }
    if config.array is not None:
        options["array"] = f"0-{len(runs) - 1}" + (f"%{config.at_once}" if config.at_once else "")
        options["output"] = log_of(config, runs).with_suffix(".%a.log")
    choices = []
    for number, (line, run) in enumerate(zip(lines, runs, strict=True)):
        own = ["--name", run.run_name, "--nodes", str(config.nodes), "--devices", str(tasks)]
        if run.accelerator == "auto":
            own += ["--accelerator", "gpu" if config.gpus_per_node else "cpu"]
        choices.append(f"{number}) set -- {shlex.join([*line, *own])} ;;")
    parts = [
        "#!/bin/bash",
        *(f"#SBATCH --{name}={value}" for name, value in options.items() if value is not None),
        *(f"#SBATCH --{option}" for option in ("requeue", *config.sbatch)),
        *([config.setup] if config.setup else []),
        "# Nodes are reached as SLURM reaches them, whether or not their names resolve.",
        'export MASTER_ADDR=$(scontrol show node "$SLURMD_NODENAME" | sed -n "s/.*NodeAddr=\\([^ ]*\\).*/\\1/p")',
        'export WANDB_MODE="${WANDB_MODE:-offline}"',
        'case "${SLURM_ARRAY_TASK_ID:-0}" in',
        *choices,
        "esac",
        'echo "run.py $*"',
        'exec srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \\',
        f'  {shlex.join([sys.executable, str(RUN)])} "$@"',
    ]
    return "\n".join(parts) + "\n"


def log_of(config: SubmitConfig, runs: list[RunConfig]) -> Path:
    """Beside the run folder; for an array, named after its file, with the number of the line before the ending."""
    name = runs[0].run_name if config.array is None else Path(config.array).stem
    return Path(runs[0].out).resolve() / f"{name}.log"


def submit(text: str, log: Path) -> int:
    """Hand the script to sbatch; the exit code is its own."""
    log.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["sbatch", "--parsable"], input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"submit.py: error: {' '.join(done.stderr.split())}", file=sys.stderr)
        return done.returncode
    job = done.stdout.strip().split(";")[0]
    print(f"job {job}; its output is in {log}; scancel {job} stops it where the same command goes on")
    return 0
