"""The cache of decoded samples: its budgets, who shares it, when it is removed, and damaged or unwritable folders."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from datamodules import node_folder, sample_cache
from datamodules.cache_folder import cache_folder
from datamodules.errors import DataError
from datamodules.memory_limit import cgroup_limits, memory_limit, slurm_limits
from datamodules.node_folder import NODE_FOLDER, common_name, in_use, let_go, once_per_node
from datamodules.sample_cache import SampleCache, open_cache

ROOT = Path(__file__).resolve().parent.parent
GIB = 1 << 30
SAMPLE = (np.zeros((8, 9, 3), np.uint8), 4, "ä b/c")
LAUNCHERS = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "SLURM_JOB_ID", "SLURM_STEP_ID", "TORCHELASTIC_RUN_ID", NODE_FOLDER)


@pytest.fixture(autouse=True)
def shared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A folder in place of /dev/shm, a cache folder, and no launcher."""
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    (tmp_path / "shm").mkdir()
    monkeypatch.setattr(node_folder, "memory_root", lambda: tmp_path / "shm")
    yield tmp_path / "shm"
    for folder in list(node_folder.held):
        if folder.is_relative_to(tmp_path):
            let_go(folder)


# Limits


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def limits(tmp_path: Path, own: str) -> list[int]:
    write(tmp_path / "own", own)
    return sorted(cgroup_limits(tmp_path / "own", tmp_path / "cgroup"))


def test_the_limit_of_the_own_group_or_of_one_above_it_holds(tmp_path: Path) -> None:
    """As under SLURM or systemd-run: the root has no limit."""
    write(tmp_path / "cgroup" / "slurm" / "job_7" / "memory.max", f"{64 * GIB}\n")
    write(tmp_path / "cgroup" / "slurm" / "job_7" / "step_0" / "memory.max", "max\n")
    write(tmp_path / "cgroup" / "slurm" / "memory.max", f"{500 * GIB}\n")
    assert limits(tmp_path, "0::/slurm/job_7/step_0\n") == [64 * GIB, 500 * GIB]


def test_version_1_of_control_groups_and_a_container_that_sees_no_group_above_its_own(tmp_path: Path) -> None:
    write(tmp_path / "cgroup" / "memory" / "user" / "memory.limit_in_bytes", f"{8 * GIB}\n")
    write(tmp_path / "cgroup" / "memory" / "memory.limit_in_bytes", "9223372036854771712\n")
    assert limits(tmp_path, "12:cpu,cpuacct:/other\n4:memory:/user/1000\n")[0] == 8 * GIB
    shutil.rmtree(tmp_path / "cgroup")
    write(tmp_path / "cgroup" / "memory" / "memory.limit_in_bytes", f"{2 * GIB}\n")
    assert limits(tmp_path, "4:memory:/docker/0123abc\n") == [2 * GIB]


def test_the_memory_of_a_slurm_job_is_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(slurm_limits({"SLURM_MEM_PER_NODE": "65536"})) == [64 * GIB]
    assert list(slurm_limits({"SLURM_MEM_PER_NODE": "0"})) == [], "the whole node"
    assert list(slurm_limits({"SLURM_MEM_PER_CPU": "2048", "SLURM_CPUS_ON_NODE": "8"})) == [16 * GIB]
    assert list(slurm_limits({"SLURM_MEM_PER_CPU": "2048"})) == []
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "1")
    assert memory_limit() == 1 << 20


def with_space(monkeypatch: pytest.MonkeyPatch, free: int, total: int = 1000 * GIB) -> None:
    monkeypatch.setattr(sample_cache.shutil, "disk_usage", lambda _: SimpleNamespace(total=total, free=free))


@pytest.mark.parametrize(
    ("free", "memory", "budget"),
    [
        (32 * GIB, 64 * GIB, 16 * GIB),  # half of /dev/shm
        (500 * GIB, 64 * GIB, 16 * GIB),  # a quarter of the job's memory
        (400 << 20, 64 * GIB, 144 << 20),  # the rest is for batches
        (64 << 20, 64 * GIB, 0),  # Docker's /dev/shm
    ],
)
def test_budget_in_memory(
    free: int, memory: int, budget: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sample_cache, "memory_limit", lambda: memory)
    with_space(monkeypatch, free)
    assert free - open_cache("memory").min_free_bytes == budget
    assert ("decoded samples are not cached" in capsys.readouterr().err) == (budget == 0)


def test_all_ranks_of_a_machine_have_the_limit_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Later ones would find less memory free, because the first has begun to fill it."""
    monkeypatch.setattr(sample_cache, "memory_limit", lambda: 1000 * GIB)
    with_space(monkeypatch, 64 * GIB)
    first = open_cache("memory")
    with_space(monkeypatch, 40 * GIB)
    assert open_cache("memory").min_free_bytes == first.min_free_bytes == 32 * GIB


def test_the_disk_cache_does_not_grow_from_run_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with_space(monkeypatch, 4_000_000)
    first = open_cache("disk")
    assert first.min_free_bytes == 2_000_000
    first.put("a" * 40, (np.zeros((100, 1000, 3), np.uint8), 0, "x"))
    taken = first.path("a" * 40).stat().st_size
    with_space(monkeypatch, 4_000_000 - taken)
    assert open_cache("disk").min_free_bytes == 2_000_000


def test_a_store_leaves_free_what_it_must(tmp_path: Path) -> None:
    full = SampleCache(tmp_path, 10**18)
    full.put("a" * 40, SAMPLE)
    assert full.get("a" * 40) is None
    roomy = SampleCache(tmp_path, 0)
    roomy.put("a" * 40, SAMPLE)
    image, label, name = roomy.get("a" * 40)
    assert (image.shape, label, name) == ((8, 9, 3), 4, "ä b/c")
    gone = SampleCache(tmp_path / "deleted", 0)
    gone.put("a" * 40, SAMPLE)
    assert gone.get("a" * 40) is None


@pytest.mark.parametrize("left", [0, 5, 40, 100])
def test_a_file_that_a_power_cut_has_damaged_is_no_sample(left: int, tmp_path: Path) -> None:
    disk = SampleCache(tmp_path, 0, durable=True)
    disk.put("a" * 40, SAMPLE)
    os.truncate(disk.path("a" * 40), left)
    assert disk.get("a" * 40) is None
    disk.path("a" * 40).write_bytes(bytes(300))
    assert disk.get("a" * 40) is None
    disk.put("a" * 40, SAMPLE)
    assert disk.get("a" * 40)[1] == 4


# Folders


def test_a_cache_folder_that_cannot_be_made_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"^--cache disk: .*file/graft cannot be written \(Not a directory\); set XDG_"):
        open_cache("disk")


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "expanduser", homeless)
    assert cache_folder() is None
    with pytest.raises(DataError, match="^--cache disk: this user has no home directory; set XDG_CACHE_HOME"):
        open_cache("disk")


def test_a_tilde_is_the_home_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "~/elsewhere")
    assert cache_folder() == tmp_path / "elsewhere" / "graft"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == tmp_path / ".cache" / "graft"


# Sharing


OTHER = """
import sys, types
from pathlib import Path
package = types.ModuleType("datamodules")  # importing the whole package, with torch, takes seconds
package.__path__ = ["datamodules"]
sys.modules["datamodules"] = package
from datamodules import node_folder
shared = Path(sys.argv[1])
node_folder.memory_root = lambda: shared
sys.argv = sys.argv[2:]
print(node_folder.node_folder(), flush=True)
sys.stdin.read()
"""


def start(shared: Path, *arguments: str, **environment: str) -> tuple[subprocess.Popen[str], Path]:
    """Another process with a node folder, until its standard input is closed or it is killed."""
    plain = {name: value for name, value in os.environ.items() if name not in LAUNCHERS}
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER, str(shared), *arguments],
        cwd=ROOT, env=plain | environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return process, Path(process.stdout.readline().strip())


def end(process: subprocess.Popen[str]) -> None:
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_only_folders_of_killed_runs_are_removed(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two containers with a common /dev/shm do not see each other's processes."""
    (living, kept), (killed, orphan) = start(shared), start(shared)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()

    def unknown(pid: int, number: int) -> None:
        raise ProcessLookupError

    monkeypatch.setattr(os, "kill", unknown)
    own = node_folder.node_folder()
    assert not orphan.exists()
    assert kept.is_dir()
    assert own.is_dir()
    assert own != kept
    end(living)
    assert not kept.exists(), "a run that ends takes its folder with it"
    let_go(own)
    assert not own.exists()


TORCHRUN = {"WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
SRUN = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}


@pytest.mark.parametrize("launcher", [TORCHRUN, SRUN], ids=["torchrun", "srun"])
def test_ranks_that_are_started_together_share_a_folder_until_the_last_ends(
    launcher: dict[str, str], shared: Path
) -> None:
    command = ("run.py", "--name", "a")
    (first, folder), (second, same) = (start(shared, *command, **launcher) for _ in range(2))
    third, other = start(shared, "run.py", "--name", "b", **launcher)
    assert folder == same
    assert folder != other, "another run of the same job"
    end(first)
    assert folder.is_dir()
    end(second)
    assert not folder.exists()
    assert in_use(other)
    end(third)
    assert not [path for path in shared.glob("graft-*/*") if path.is_dir()]


def test_runs_of_one_process_share_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in a SLURM job of several tasks without srun, nor as a step of one task."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert common_name() is None
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert common_name() is None


def test_one_rank_of_a_machine_does_the_work_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def work() -> list[int]:
        calls.append(1)
        return [1, 2]

    assert [once_per_node("a", work) for _ in range(2)] == [[1, 2]] * 2
    assert len(calls) == 2, "a run of one process may be a new run over changed data"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert [once_per_node("a", work) for _ in range(3)] == [[1, 2]] * 3
    assert len(calls) == 2
    once_per_node("b", work)
    assert len(calls) == 3


def test_a_folder_of_another_user_is_not_used(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody may have made a folder of the expected name to pass off samples of his own."""
    own = os.getuid() + 1
    (shared / f"graft-{own}").mkdir()
    monkeypatch.setattr(os, "getuid", lambda: own)
    folder = node_folder.node_folder()
    assert folder.parent != shared / f"graft-{own}"
    assert folder.is_dir()
