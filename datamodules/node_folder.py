"""A folder in shared memory for all processes of a run on one machine, removed by the last of them that ends.

The processes of a run find the same folder however they are started. Processes that Lightning starts inherit its path
in the environment. Those that `torchrun` or `srun` start derive its name from the job and the command line, so that
several runs of one job have different folders.

Every process holds the lock of a file of its own in the folder. The system releases it when the process ends, however
it ends. A folder without a held lock belongs to a run that was killed, and the next run removes it. Process ids would
not do, because two containers with a common /dev/shm do not see each other's processes.
"""

import atexit
import json
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha1
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from datamodules.cache_folder import read_json, write_json
from datamodules.errors import DataError

NODE_FOLDER = "GRAFT_NODE_FOLDER"
"""Environment variable with the path, for the processes that this one starts."""
LOCK = ".lock"
"""In the parent folder: held while a node folder is made or removed."""
PATIENCE = 120
"""Seconds to wait for that lock."""
HOLDERS = "holders"
"""Subfolder with the lock file of each process."""
held: dict[Path, FileLock] = {}
"""This process's lock in each node folder."""


def node_folder() -> Path:
    """The folder of this run on this machine, made if this process is the first of the run."""
    if NODE_FOLDER in os.environ:
        folder = Path(os.environ[NODE_FOLDER])
        if folder not in held:
            with folders_locked(folder.parent):
                hold(folder)
        return folder
    root = user_folder()
    # Until this process holds its new folder, another one would take it for a folder that was left behind.
    with folders_locked(root):
        for folder in [path for path in root.iterdir() if path.is_dir() and not in_use(path)]:
            shutil.rmtree(folder, ignore_errors=True)
        folder = root / (common_name() or uuid.uuid4().hex)
        hold(folder)
    os.environ[NODE_FOLDER] = str(folder)
    return folder


@contextmanager
def folders_locked(parent: Path) -> Iterator[None]:
    """Let no other process make or remove node folders in `parent` meanwhile.

    Raises:
        ValueError: it has been locked for two minutes.
    """
    try:
        with FileLock(parent / LOCK, timeout=PATIENCE):
            yield
    except Timeout:
        raise DataError(
            f"{parent / LOCK} has been locked for {PATIENCE} s; delete it if no other run is starting or ending"
        ) from None


def memory_root() -> Path:
    """/dev/shm, or the folder for temporary files where there is none."""
    shared = Path("/dev/shm")
    return shared if shared.is_dir() and os.access(shared, os.W_OK) else Path(tempfile.gettempdir())


def user_folder() -> Path:
    """The parent of all node folders of this user, which nobody else can write to."""
    user = getattr(os, "getuid", int)()  # on Windows, each user has a folder for temporary files
    root = memory_root() / f"graft-{user}"
    root.mkdir(mode=0o700, exist_ok=True)
    if root.stat().st_uid != user:  # another container, which numbers its users differently, or somebody's trap
        root = Path(tempfile.mkdtemp(prefix="graft-", dir=root.parent))
    return root


def started_together() -> bool:
    """Whether other ranks run this program at the same time: started by torchrun, srun or Lightning."""
    sizes = (os.environ.get("WORLD_SIZE", "1"), os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    return any(size.isdigit() and int(size) > 1 for size in sizes)


def common_name() -> str | None:
    """A name that all ranks of this run derive alike, and no other run; None for a run of one process."""
    if not started_together():
        return None
    names = (
        "SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT",
        "MASTER_ADDR", "MASTER_PORT",
    )  # fmt: skip
    identity = [[os.environ.get(name) for name in names], sys.argv]
    return sha1(json.dumps(identity).encode()).hexdigest()


def hold(folder: Path) -> None:
    """Mark the folder as in use by this process until it ends."""
    (folder / HOLDERS).mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / HOLDERS / uuid.uuid4().hex)
    lock.acquire()
    held[folder] = lock
    owner = os.getpid()

    def leave() -> None:
        if os.getpid() == owner:  # forked workers inherit this function
            let_go(folder)

    atexit.register(leave)


def let_go(folder: Path) -> None:
    """End this process's use of the folder. The last process removes it."""
    lock = held.pop(folder, None)
    if lock is None or not folder.is_dir():
        return
    lock.release()
    with folders_locked(folder.parent):
        if not in_use(folder):
            shutil.rmtree(folder, ignore_errors=True)


def in_use(folder: Path) -> bool:
    """Whether a living process holds the folder. Also true if that cannot be found out."""
    if folder in held:
        return True
    try:
        for file in (folder / HOLDERS).iterdir():
            with FileLock(file, timeout=0):
                pass
    except FileNotFoundError:  # killed before it held the folder
        return False
    except (Timeout, OSError):
        return True
    return False


def once_per_node(name: str, work: Callable[[], Any]) -> Any:
    """The result of `work` (plain JSON values), computed by one rank of this run on this machine; the others wait.

    If it raises an exception, the next rank tries and raises it too.
    """
    file = node_folder() / f"{sha1(name.encode()).hexdigest()}.json"
    with FileLock(file.with_suffix(".lock")):
        found = read_json(file) if started_together() else None
        if found is None:
            found = {"result": work()}
            write_json(file, found)
        return found["result"]
