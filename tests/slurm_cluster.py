"""A SLURM cluster of two nodes on this machine, in a folder of its own, for as long as tests need it."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from experiments.command_line.process import end_with_parent

PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
NODES = ("n1", "n2")
CORES_OF_A_NODE = 8  # whatever the machine has: jobs are to run at the same time
KILL_WAIT_S = 5
START_S = 30


def missing() -> str | None:
    """Why there can be no cluster here, or None."""
    absent = [name for name in NEEDED if shutil.which(name, path=PATH) is None]
    if absent:
        return f"no {', '.join(absent)} here (Debian: slurm-wlm and munge)"
    return None if os.geteuid() == 0 else "slurmd runs jobs for their users, so it must be root"


@contextmanager
def cluster(root: Path) -> Iterator[dict[str, str]]:
    """Yields the environment in which SLURM's commands reach the cluster; everything is ended with the block."""
    environment = {**os.environ, "PATH": PATH, "SLURM_CONF": str(root / "slurm.conf")}
    # A job of SLURM that runs these tests must not be taken for one of this cluster.
    environment = {name: value for name, value in environment.items() if name[:6] != "SLURM_" or name == "SLURM_CONF"}
    (root / "state").mkdir()
    (root / "slurm.conf").write_text(configuration(root))
    # Any two devices do for GPUs.
    (root / "gres.conf").write_text("".join(f"NodeName={n} Name=gpu File=/dev/null,/dev/zero\n" for n in NODES))
    key = root / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    munge = [f"--{name}={root / f'munge.{name}'}" for name in ("socket", "pid-file", "log-file", "seed-file")]
    daemons = [
        ["munged", "--foreground", "--force", f"--key-file={key}", *munge],
        ["slurmctld", "-D"],
        *(["slurmd", "-D", "-N", node] for node in NODES),
    ]
    with ExitStack() as stack:
        for number, command in enumerate(daemons):
            log = stack.enter_context((root / f"{command[0]}{number}.log").open("w"))
            process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True, preexec_fn=end_with_parent
            )
            stack.callback(end, process)
            if command[0] == "munged":
                wait(lambda: (root / "munge.socket").exists(), "munged does not start")
        wait(lambda: ask(environment, "sinfo", "-h", "-t", "idle", "-o", "%D") == "2", "the nodes do not come up")
        stack.callback(empty, environment)
        yield environment


def configuration(root: Path) -> str:
    """slurm.conf, with ports that are free, and a first job number of its own: Lightning's port is made from it."""
    control, *ports = free_ports(1 + len(NODES))
    host = socket.gethostname()
    nodes = "".join(
        f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={CORES_OF_A_NODE} Gres=gpu:2\n"
        for node, port in zip(NODES, ports, strict=True)
    )
    return f"""ClusterName=graft
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control}
SlurmUser=root
SlurmdUser=root
# A job that is queued again waits for as long as a credential lasts, which is no less than this.
AuthInfo=socket={root}/munge.socket,cred_expire=5
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool-%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobRequeue=1
KillWait={KILL_WAIT_S}
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
FirstJobId={1000 + control % 8000}
GresTypes=gpu
{nodes}PartitionName=main Nodes={",".join(NODES)} Default=YES MaxTime=INFINITE State=UP
"""


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def ask(environment: dict[str, str], *command: str) -> str:
    """What one of SLURM's commands prints."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout.strip()


def wait(ready: Callable[[], bool], otherwise: str, seconds: float = START_S) -> None:
    """Raises TimeoutError where `ready()` does not become true."""
    give_up = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > give_up:
            raise TimeoutError(otherwise)
        time.sleep(0.2)


def empty(environment: dict[str, str]) -> None:
    """Cancel all jobs, and wait until their processes are gone."""
    ask(environment, "scancel", "--user=root")
    wait(lambda: not ask(environment, "squeue", "-h"), "jobs do not end", KILL_WAIT_S + START_S)


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
