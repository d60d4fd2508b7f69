"""Run the trials of an Optuna study, each a run of run.py in a folder of its own.

The study is a SQLite file: killed at any moment, it goes on. A trial that was running then is marked as failed and its
point asked for once more; that trial continues the folder of the first.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.table import Table

from experiments.command_line.parser import dashed
from experiments.many_runs import child_runs
from experiments.many_runs.child_runs import Child, Signals, failure, resume_if_damaged, slot_environment
from experiments.many_runs.search_space import Axis, TuneConfig
from experiments.run_files.read_run import read_run, validation_scores

SECONDS_BETWEEN_LOOKS = 0.2
SHOWN = 10
"""Trials in the table at the end."""


@dataclass
class Running:
    """A trial whose run is under way."""

    trial: optuna.Trial
    folder: Path
    child: Child | None
    """None where the run had finished before the study could be told."""
    reported: int = 0
    """Epochs the study knows of."""
    pruned: bool = False


def run_study(config: TuneConfig, axes: list[Axis], common: list[str]) -> int:
    """The exit code: 0 if any trial has finished, 1 if none has, 130 or 143 if Ctrl-C or SIGTERM stopped it.

    Raises:
        ValueError: the folder holds another study, or another process works on it.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    gpus = [number for number in config.gpus.split(",") if number]
    running: dict[int, Running] = {}
    with locked(out), Signals() as signals:
        study = open_study(config, common)
        while running or (wanted(study, config.trials) and not signals):
            for slot in range(config.jobs):
                if slot not in running and wanted(study, config.trials) and not signals:
                    running[slot] = start(study, axes, common, out, slot_environment(config.jobs, slot, gpus))
            time.sleep(SECONDS_BETWEEN_LOOKS)
            signals.pass_on([one.child for one in running.values() if one.child is not None])
            running = {slot: one for slot, one in running.items() if not ended(study, one, stopping=bool(signals))}
        summary(study, common)
    if signals:
        return signals.exit_code
    return int(not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keeps a second process out of the study, which would take our running trials for broken ones."""
    with (out / "study.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"--out {out}: another tune.py works on this study; wait for it or stop it") from error
        yield


def open_study(config: TuneConfig, common: list[str]) -> optuna.Study:
    """The study in the folder, begun or continued, with what was running asked for anew."""
    path = (Path(config.out) / "study.db").resolve()
    study = optuna.create_study(
        storage=f"sqlite:///{path}", study_name="tune", direction="maximize", load_if_exists=True
    )
    asked = {"search": list(config.search), "settings": common}
    for key, value in asked.items():
        before = study.user_attrs.get(key, value)
        if before != value:
            raise ValueError(
                f"--out {config.out} was begun with '{' '.join(before)}', not '{' '.join(value)}'; "
                "give the same, or another --out"
            )
        study.set_user_attr(key, value)
    # The sampler's own random state is not kept; another seed for each continuation keeps it from drawing points again.
    study.sampler = optuna.samplers.TPESampler(seed=config.seed + len(study.trials), constant_liar=True)
    # No run is judged by its first epoch, nor before there are four to be compared with.
    study.pruner = optuna.pruners.MedianPruner(4, 2) if config.prune else optuna.pruners.NopPruner()
    again = {folder_of(trial) for trial in study.get_trials(states=(TrialState.WAITING,))}
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        if folder_of(trial) not in again:
            study.enqueue_trial(trial.params, user_attrs={"folder": folder_of(trial)})
        study.tell(trial.number, state=TrialState.FAIL)
    return study


def folder_of(trial: FrozenTrial | optuna.Trial) -> str:
    """Name of its run folder: its own, or that of the broken one it repeats."""
    return trial.user_attrs.get("folder", f"trial-{trial.number}")


def wanted(study: optuna.Study, trials: int) -> bool:
    """Whether another trial is to be run; one that repeats a broken one is the same trial."""
    there = study.get_trials(deepcopy=False)
    return any(one.state == TrialState.WAITING for one in there) or len({folder_of(one) for one in there}) < trials


def start(study: optuna.Study, axes: list[Axis], common: list[str], out: Path, environment: dict[str, str]) -> Running:
    trial = study.ask()
    values = {axis.name: axis.ask(trial) for axis in axes}
    folder = out / folder_of(trial)
    say(f"{folder.name}  " + "  ".join(f"{name} {value}" for name, value in values.items()))
    if final_score(folder) is not None:
        return Running(trial, folder, None)
    own = ["--name", folder.name, "--out", str(out)]
    return Running(
        trial, folder, Child([*common, *flags(values), *own, *resume_if_damaged(folder)], folder, environment)
    )


def flags(values: dict[str, str]) -> list[str]:
    return [f"{dashed(name)}={value}" for name, value in values.items()]


def ended(study: optuna.Study, one: Running, *, stopping: bool) -> bool:
    """Tell the study what a run has come to; whether its process has ended."""
    code = 0 if one.child is None else one.child.code()  # first: what it wrote before it ended is read then
    if one.pruned:
        return code is not None
    for epoch, score in enumerate(validation_scores(read_run(one.folder))[one.reported :], one.reported + 1):
        one.trial.report(score, epoch)
        one.reported = epoch
        if one.child is not None and code is None and not stopping and one.trial.should_prune():
            study.tell(one.trial, state=TrialState.PRUNED)
            one.child.stop(signal.SIGTERM)
            one.pruned = True
            say(f"{one.folder.name}  pruned after epoch {epoch} at {score:.4f}")
            return False
    if code is None:
        return False
    final = final_score(one.folder)
    if code == 0 and final is not None:
        study.tell(one.trial, final)
        say(f"{one.folder.name}  {final:.4f}; best so far {study.best_value:.4f}")
    elif not stopping:  # else it stays marked as running, to be asked for again
        assert one.child is not None
        study.tell(one.trial, state=TrialState.FAIL)
        say(f"{one.folder.name}  failed, {failure(one.child)} ({one.child.log})")
    return True


def final_score(folder: Path) -> float | None:
    """The validation score of a finished run: mIoU, or top-1."""
    scores = read_run(folder).scores.get("val", {})
    return scores.get("miou", scores.get("top1"))


def summary(study: optuna.Study, common: list[str]) -> None:
    """The best trials, and the command that repeats the best."""
    there = study.get_trials(deepcopy=False)
    best = sorted((one for one in there if one.state == TrialState.COMPLETE), key=lambda one: -(one.value or 0))
    pruned, failed = (sum(one.state == state for one in there) for state in (TrialState.PRUNED, TrialState.FAIL))
    say(f"{len(best)} trials finished, {pruned} pruned, {failed} failed or repeated")
    if not best:
        return
    table = Table("trial", *best[0].params, "score")
    for one in best[:SHOWN]:
        values = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in one.params.values()]
        table.add_row(folder_of(one), *values, f"{one.value:.4f}")
    Console().print(table)
    again = {name: repr(value) if isinstance(value, float) else str(value) for name, value in best[0].params.items()}
    say(f"best: {folder_of(best[0])}; again, with a --name of your choice:")
    say(shlex.join(["python", os.path.relpath(child_runs.RUN), *common, *flags(again)]))


def say(line: str) -> None:
    print(line, flush=True)
