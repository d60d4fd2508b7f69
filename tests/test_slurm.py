"""submit.py on a real SLURM of two nodes: jobs train, save, queue themselves again, and stop where they can go on."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.interrupted_runs import arguments, make_data, same_end
from tests.slurm_cluster import ask, cluster, missing, wait
from tests.warm_process import run_python

ROOT = Path(__file__).resolve().parent.parent
LONG = ("--epochs", "60")  # 180 steps of two processes, of which signals cut off most
JOBS_S = 150
TWO_RANKS = """
import sys
from pathlib import Path
from tests.kill_trials import finish, start
sys.exit(max(map(abs, finish(start(sys.argv[2:], Path(sys.argv[1]), 2)))))
"""

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@dataclass
class Jobs:
    """The environment that reaches the cluster, and where the runs of its jobs lie."""

    environment: dict[str, str]
    data: Path
    out: Path

    def submit(self, *own: str, run: list[str]) -> str:
        """The number of the job."""
        command = [sys.executable, str(ROOT / "experiments" / "submit.py"), "--gpus-per-node", "0", *own, "--", *run]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return re.findall(r"job (\d+);", done.stdout)[0]

    def finish(self, name: str) -> None:
        """Train to the end without SLURM, with two ranks on this machine."""
        flags = arguments(self.data, self.out, *LONG, "--name", name)
        done = run_python(["-c", TWO_RANKS, str(self.out / "here.log"), *flags], env=self.environment)
        assert done.returncode == 0, (self.out / "here.log").read_text()

    def log(self, name: str) -> str:
        return (self.out / f"{name}.log").read_text()

    def at_first_epochs(self, commands: dict[str, list[str]]) -> None:
        """Do something to each job, by the name of its run, as soon as that has finished its first epoch."""
        left = dict(commands)

        def all_done() -> bool:
            for name in [name for name in left if (self.out / name / "metrics.csv").exists()]:
                ask(self.environment, *left.pop(name))
            return not left

        wait(all_done, f"one of {', '.join(commands)} does not train", JOBS_S)


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobs]:
    """All jobs of this file, run at the same time: one that is signalled, one that is cancelled, and an array.

    And the run `whole`, of as many ranks, that nothing interrupts.
    """
    root = tmp_path_factory.mktemp("slurm")
    data, out = make_data(root / "pairs"), root / "runs"
    (root / "cluster").mkdir()
    with cluster(root / "cluster") as environment:
        environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WANDB_SILENT": "true"}
        environment.pop("GRAFT_RUN_FOLDER", None)
        made = Jobs(environment, data, out)
        grid = root / "grid.txt"
        lines = [
            [
                "python",
                "experiments/run.py",
                "--name",
                f"seed{i}",
                "--seed",
                str(i),
                "--out",
                str(out),
                "--print-config",
            ]
            for i in (0, 1)
        ]
        grid.write_text("# two seeds\n" + "".join(f"{shlex.join(line)}\n" for line in lines))
        signalled = made.submit(
            "--nodes", "2", run=[*arguments(data, out, *LONG, "--logger", "wandb"), "--name", "signalled"]
        )
        cancelled = made.submit("--nodes", "2", run=[*arguments(data, out, *LONG), "--name", "cancelled"])
        made.submit("--array", str(grid), "--at-once", "1", run=[])
        made.at_first_epochs(
            {"signalled": ["scancel", "--signal=USR1", signalled], "cancelled": ["scancel", cancelled]}
        )
        made.finish("whole")
        wait(lambda: not ask(environment, "squeue", "-h"), "jobs do not end", JOBS_S)
        yield made


def test_two_nodes_train_together(jobs: Jobs) -> None:
    assert "MEMBER: 2/2" in jobs.log("signalled")
    assert (jobs.out / "signalled" / "results.json").is_file(), jobs.log("signalled")


def test_a_job_that_gets_its_signal_queues_itself_again(jobs: Jobs) -> None:
    """And ends with the weights and the curve of the one that got none, and as one run of W&B."""
    log = jobs.log("signalled")
    assert re.search(r"stopped by SIGUSR1 after \w+ \d+.*, job \d+ queued again", log), log
    same_end(jobs.out / "signalled", jobs.out / "whole")
    parts = list((jobs.out / "signalled" / "wandb").glob("offline-run-*"))
    assert len(parts) == 2
    assert {part.name.split("-")[-1] for part in parts} == {(jobs.out / "signalled" / "wandb_id").read_text().strip()}


def test_a_cancelled_job_leaves_a_folder_to_go_on_in(jobs: Jobs) -> None:
    """Here without SLURM, on one machine."""
    log = jobs.log("cancelled")
    assert "stopped by SIGTERM after" in log, log
    assert not (jobs.out / "cancelled" / "results.json").exists()
    jobs.finish("cancelled")
    same_end(jobs.out / "cancelled", jobs.out / "whole")


def test_a_grid_is_an_array(jobs: Jobs) -> None:
    for number in (0, 1):
        assert f"--name seed{number}" in jobs.log(f"grid.{number}")
        assert f"\nname: seed{number}\n" in jobs.log(f"grid.{number}")
        assert f"\nseed: {number}\n" in jobs.log(f"grid.{number}")


def test_gpus_are_asked_for_as_the_trainer_will_use_them(jobs: Jobs, tmp_path: Path) -> None:
    """SLURM itself takes the script: two processes on each of two nodes, and a GPU for each."""
    command = [
        sys.executable,
        str(ROOT / "experiments" / "submit.py"),
        "--nodes",
        "2",
        "--gpus-per-node",
        "2",
        "--dry-run",
    ]
    done = subprocess.run([*command, "--", "--name", "g"], capture_output=True, text=True, timeout=60, check=False)
    assert "--nodes 2 --devices 2 --accelerator gpu" in done.stdout
    script = tmp_path / "job.sh"
    # Held for a later day; what it would get is known all the same.
    script.write_text(done.stdout)
    job = ask(jobs.environment, "sbatch", "--parsable", "--begin=now+1day", str(script))
    shown = ask(jobs.environment, "scontrol", "show", "job", job)
    assert "NumNodes=2" in shown
    assert "NumTasks=4" in shown
    assert "TresPerNode=gres:gpu:2" in shown
    assert "Requeue=1" in shown
    ask(jobs.environment, "scancel", job)
