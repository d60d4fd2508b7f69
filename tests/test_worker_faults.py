"""A lost worker: the reason in one line, and the signals and systems that workers run under."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing import forkserver
from pathlib import Path
from types import SimpleNamespace

import pytest

from datamodules import worker_faults, worker_signals
from datamodules.node_folder import NODE_FOLDER
from datamodules.worker_faults import explain_worker_fault
from tests.obedient_worker import work
from tests.warm_process import LIBRARIES, run_python

ROOT = Path(__file__).resolve().parent.parent
KILLED = "a data-loader worker was killed, as the system does when memory runs out; use fewer --workers"
BUS = (
    "DataLoader worker (pid 45) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
    "shared memory. Please try to raise your shared memory limit."
)


@pytest.mark.parametrize(
    "text",
    [
        BUS,
        "Caught RuntimeError in DataLoader worker process 0.\nRuntimeError: unable to allocate shared memory(shm) for "
        "file </torch_45_1_0>: No space left on device (28)",
        "unable to write to file </torch_45_99_0>: No space left on device (28)",
    ],
)
def test_full_shared_memory_is_named_with_its_size(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_faults, "memory_root", lambda: "/dev/shm")
    monkeypatch.setattr(worker_faults.shutil, "disk_usage", lambda _: SimpleNamespace(total=64_000_000))
    said = explain_worker_fault(RuntimeError(text))
    assert said is not None
    for part in ("/dev/shm has 64.0 MB", "docker run --shm-size=8g", "--ipc=host", "--workers 0", "--cache none"):
        assert part in said


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("unable to open shared memory object </torch_45_7> in read-write mode: Too many open files (24)"),
        RuntimeError("received 0 items of ancdata"),
        OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
    ],
)
def test_too_many_open_files(error: Exception) -> None:
    assert "ulimit -n" in str(explain_worker_fault(error))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("DataLoader worker (pid 45) is killed by signal: Killed. ", KILLED),
        ("DataLoader worker (pid(s) 45, 46) exited unexpectedly", KILLED),
        (
            "DataLoader worker (pid 45) is killed by signal: Segmentation fault. ",
            "a data-loader worker ended with Segmentation fault; --workers 0 runs the same in one process",
        ),
        ("Caught RuntimeError in DataLoader worker process 0.\nRuntimeError: a bug", None),
        ("CUDA error: out of resource: shared memory, Required: 98304", None),
        ("mat1 and mat2 shapes cannot be multiplied", None),
    ],
)
def test_other_ends_of_workers(text: str, said: str | None) -> None:
    assert explain_worker_fault(RuntimeError(text)) == said


# Signals


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_worker_ends_by_its_parents_signal_only(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However it was started: the parent of a process from a fork server is another process."""
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: method)
    forkserver._forkserver._stop()  # one of another test would not block SIGTERM
    worker = multiprocessing.get_context(method).Process(target=work, args=(str(tmp_path / "ready"),), daemon=True)
    with worker_signals.sigterm_blocked():
        worker.start()
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    while not (tmp_path / "ready").exists():
        assert worker.is_alive()
        time.sleep(0.02)
    for name in ("TERM", "INT", "USR1"):
        subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
    worker.join(0.5)
    assert worker.is_alive()
    worker.terminate()
    worker.join(20)
    assert worker.exitcode == 0


def work_on_mac(ready: str) -> None:
    del signal.sigwaitinfo
    work(ready)


def test_where_no_sender_is_known_a_worker_ends_by_any_signal(tmp_path: Path) -> None:
    worker = multiprocessing.get_context("fork").Process(target=work_on_mac, args=(str(tmp_path / "ready"),))
    worker.start()
    while not (tmp_path / "ready").exists():
        time.sleep(0.02)
    worker.terminate()
    worker.join(20)
    assert worker.exitcode == -signal.SIGTERM


# Systems


WITHOUT = {
    "macOS": "import signal; del signal.sigwaitinfo",
    "Windows": """
import ctypes, os, signal, sys
sys.modules["fcntl"] = sys.modules["resource"] = None
for name in ("SIGUSR1", "sigwaitinfo", "pthread_sigmask"):
    delattr(signal, name)
for name in ("sysconf", "getuid"):
    delattr(os, name)
original = ctypes.CDLL
def library(name, *more, **options):
    if name is None:
        raise TypeError("no name")
    return original(name, *more, **options)
""",
}
EPOCH = """
import warnings
warnings.filterwarnings("ignore")
from pathlib import Path
from datamodules import DATAMODULES, memory_limit, node_folder
node_folder.memory_root = lambda: Path(sys.argv[2])
if "fcntl" in sys.modules and sys.modules["fcntl"] is None:
    ctypes.CDLL = library
    memory_limit.cgroup_limits = lambda: []
data = DATAMODULES["folders"]("segmentation", data_dir=sys.argv[1], image_size=(16, 16), batch_size=2, workers=1)
data.setup()
print(sum(len(batch["name"]) for batch in data.train_dataloader()))
"""


@pytest.mark.parametrize("system", WITHOUT)
def test_an_epoch_without_what_other_systems_lack(system: str, crf_folder: Path, tmp_path: Path) -> None:
    done = run_python(
        ["-c", f"import sys\n{WITHOUT[system]}\n{EPOCH}", str(crf_folder), str(tmp_path)],
        env={name: value for name, value in os.environ.items() if name != NODE_FOLDER}, imported=LIBRARIES,
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, "8"), done.stderr[-2000:]
    assert "Traceback" not in done.stderr


# Packages


def test_albumentationsx_is_refused_in_one_line(tmp_path: Path) -> None:
    """Its files would be those of albumentations."""
    package = tmp_path / "albumentationsx-2.1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: albumentationsx\nVersion: 2.1.0\n")
    done = subprocess.run(
        [sys.executable, "-c", "import datamodules"],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert (
        "DataError: albumentationsx 2.1.0 is installed and replaces files of albumentations; run `pip uninst"
        in (done.stderr.splitlines()[-1])
    )
