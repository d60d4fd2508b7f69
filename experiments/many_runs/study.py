"""Run the trials of an Optuna study, each a run of run.py in a folder of its own.

The study is a SQLite file and can be continued after it was killed at any moment. A trial that was running then is
marked as failed, and a new trial with the same values continues its run folder.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.table import Table

from experiments.command_line.console import make_console
from experiments.command_line.parser import dashed
from experiments.many_runs import child_runs
from experiments.many_runs.child_runs import Child, Signals, Slot, failure, resume_if_damaged
from experiments.many_runs.search_space import Axis, TuneConfig
from experiments.run_files.read_run import read_run, validation_scores

SHOWN = 10
"""Trials in the table at the end."""


@dataclass
class Running:
    """A trial whose run has been started."""

    trial: optuna.Trial
    folder: Path
    child: Child | None
    """None if the run had finished before the study could be told."""
    reported: int = 0
    """Epochs the study knows of."""
    pruned: bool = False


def run_study(config: TuneConfig, axes: list[Axis], common: list[str], slots: list[Slot]) -> int:
    """Returns the exit code: 0 if any trial has finished, 1 if none has, 130 or 143 if Ctrl-C or SIGTERM stopped it.

    Raises:
        ValueError: the folder holds another study, or another process works on it.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    running: dict[int, Running] = {}
    with locked(out), Signals() as signals:
        study = open_study(config, common)
        while running or (wanted(study, config.trials) and not signals):
            for number, slot in enumerate(slots):
                if number not in running and wanted(study, config.trials) and not signals:
                    running[number] = start(study, axes, common, out, slot)
            signals.wait()
            signals.pass_on([one.child for one in running.values() if one.child is not None])
            running = {number: one for number, one in running.items() if not ended(study, one, stopping=bool(signals))}
        print_summary(study, common)
    if signals:
        return signals.exit_code
    return int(not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keep a second process out of the study, because it would take our running trials for interrupted ones.

    A file system without locks is reported and accepted.

    Raises:
        ValueError: another process holds the lock.
    """
    with (out / "study.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise ValueError(f"--out {out}: another tune.py works on this study; wait for it or stop it") from error
            reason = f"the file system of {out} has no locks ({error.strerror})"
            print(f"tune.py: {reason}; start no second tune.py on this study", file=sys.stderr)
        yield


def open_study(config: TuneConfig, common: list[str]) -> optuna.Study:
    """The study in the folder, new or continued; trials that were interrupted are queued again."""
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
    # The sampler's random state is not stored; a seed of its own for each continuation avoids drawing the same points.
    study.sampler = optuna.samplers.TPESampler(seed=config.seed + len(study.trials), constant_liar=True)
    # Prunes from a run's second epoch on, and only once there are four trials to compare it with.
    study.pruner = optuna.pruners.MedianPruner(4, 2) if config.prune else optuna.pruners.NopPruner()
    again = {folder_of(trial) for trial in study.get_trials(states=(TrialState.WAITING,))}
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        if folder_of(trial) not in again:
            study.enqueue_trial(trial.params, user_attrs={"folder": folder_of(trial)})
        study.tell(trial.number, state=TrialState.FAIL)
    return study


def folder_of(trial: FrozenTrial | optuna.Trial) -> str:
    """Name of its run folder: its own, or that of the interrupted trial that it repeats."""
    return trial.user_attrs.get("folder", f"trial-{trial.number}")


def wanted(study: optuna.Study, trials: int) -> bool:
    """Whether another trial is to be run; one that repeats an interrupted trial counts as the same."""
    there = study.get_trials(deepcopy=False)
    return any(one.state == TrialState.WAITING for one in there) or len({folder_of(one) for one in there}) < trials


def start(study: optuna.Study, axes: list[Axis], common: list[str], out: Path, slot: Slot) -> Running:
    """Start the next trial of the study."""
    trial = study.ask()
    values = {axis.name: axis.suggest(trial) for axis in axes}
    folder = out / folder_of(trial)
    say(f"{folder.name}  " + "  ".join(f"{name} {value}" for name, value in values.items()))
    if final_score(folder) is not None:
        return Running(trial, folder, None)
    own = [*slot.arguments, "--name", folder.name, "--out", str(out)]
    arguments = [*common, *flags(values), *own, *resume_if_damaged(folder)]
    return Running(trial, folder, Child(arguments, folder, slot.environment))


def flags(values: dict[str, str]) -> list[str]:
    return [f"{dashed(name)}={value}" for name, value in values.items()]


def ended(study: optuna.Study, one: Running, *, stopping: bool) -> bool:
    """Report a run's new scores and its end to the study. Returns whether its process has ended."""
    code = 0 if one.child is None else one.child.code()  # asked first: see grid_run.follow
    if one.pruned:
        return code is not None
    for epoch, score in validation_scores(read_run(one.folder)).items():
        if epoch <= one.reported:
            continue
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
    elif not stopping:  # otherwise it stays marked as running and is queued again by the next call
        assert one.child is not None
        study.tell(one.trial, state=TrialState.FAIL)
        say(f"{one.folder.name}  failed, {failure(one.child)} ({one.child.log})")
    return True


def final_score(folder: Path) -> float | None:
    """The validation score of a finished run: mIoU, top-1 or mAP."""
    scores = read_run(folder).scores.get("val", {})
    return scores.get("miou", scores.get("top1", scores.get("map")))


def print_summary(study: optuna.Study, common: list[str]) -> None:
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
    make_console().print(table)
    again = {name: repr(value) if isinstance(value, float) else str(value) for name, value in best[0].params.items()}
    say(f"best: {folder_of(best[0])}; again, with a --name of your choice:")
    say(shlex.join(["python", os.path.relpath(child_runs.RUN), *common, *flags(again)]))


def say(line: str) -> None:
    print(line, flush=True)
