"""Programs of Graft as processes of their own, without the seconds that each would spend on importing torch.

A server imports everything once, for all processes of a test session, and forks for each program. What a test sees of
it is what it would see of `python ARGUMENTS`: exit code, output, signals, process id, working directory and
environment. What is about starting itself (which modules are imported, `--help` in no time, another checkout) needs a
real process.
"""

import contextlib
import functools
import gc
import hashlib
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from filelock import FileLock

ROOT = Path(__file__).resolve().parent.parent
GRAFT = ("experiments.training.train",)
LIBRARIES = ("lightning.pytorch", "torchvision", "albumentations", "matplotlib.pyplot")
"""What another checkout needs too."""
LARGEST_REQUEST = 150_000
"""Bytes; Linux takes packets of about 200 kB."""


class Program:
    """A started program, like `subprocess.Popen`: `pid`, `returncode`, `poll`, `wait` and `send_signal`."""

    def __init__(self, command: Sequence[str], control: socket.socket) -> None:
        self.command = list(command)
        self.returncode: int | None = None
        self._control = control
        self.pid = int(control.recv(64))

    def wait(self, timeout: float | None = None) -> int:
        """The exit code; negative for a signal.

        Raises:
            subprocess.TimeoutExpired: it still runs after so many seconds.
        """
        if self.returncode is None:
            self._control.settimeout(timeout)
            try:
                self.returncode = int(self._control.recv(64))
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(self.command, timeout or 0) from None
            self._control.close()
        return self.returncode

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def start_python(
    arguments: Sequence[str],
    *,
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
    stdout: IO[Any] | None = None,
    stderr: IO[Any] | None = None,
    start_new_session: bool = False,
    imported: tuple[str, ...] = GRAFT,
) -> Program:
    """Start `python ARGUMENTS`: a file, `-m MODULE` or `-c CODE`, and what follows. It reads nothing from stdin.

    Args:
        imported: the modules that are imported already.
    """
    request = json.dumps(
        {
            "arguments": [str(one) for one in arguments],
            "cwd": str(cwd),
            "env": dict(os.environ if env is None else env),
            "session": start_new_session,
        }
    ).encode()
    assert len(request) <= LARGEST_REQUEST
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs, open(os.devnull) as nothing:
        files = [nothing.fileno(), (stdout or sys.__stdout__).fileno(), (stderr or sys.__stderr__).fileno()]  # type: ignore[union-attr]
        socket.send_fds(server(imported), [request], [*files, theirs.fileno()])
    return Program(arguments, ours)


def run_python(arguments: Sequence[str], *, timeout: float = 200, **options: Any) -> subprocess.CompletedProcess[str]:
    """Like `subprocess.run([sys.executable, *arguments], capture_output=True, text=True)`; options of start_python.

    Raises:
        subprocess.TimeoutExpired: it did not end within so many seconds, and has been killed.
    """
    (out, out_end), (error, error_end) = os.pipe(), os.pipe()
    with open(out_end, "w") as written, open(error_end, "w") as said:
        program = start_python(arguments, stdout=written, stderr=said, **options)
    texts = {out: "", error: ""}

    def read(end: int) -> None:
        with open(end) as file:
            texts[end] = file.read()

    readers = [threading.Thread(target=read, args=(end,), daemon=True) for end in texts]
    for reader in readers:
        reader.start()
    until = time.monotonic() + timeout
    try:
        program.wait(timeout)
        for reader in readers:  # processes that it started may write for longer, and are waited for, as by subprocess
            reader.join(max(0, until - time.monotonic()))
            if reader.is_alive():
                raise subprocess.TimeoutExpired(program.command, timeout)
    except BaseException:
        program.send_signal(signal.SIGKILL)
        raise
    return subprocess.CompletedProcess(program.command, program.wait(), texts[out], texts[error])


@functools.cache
def server(imported: tuple[str, ...]) -> socket.socket:
    """Connect to the session's server that has imported these modules; the first process of the session starts it.

    It ends with the last process that is connected.
    """
    session = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    name = hashlib.sha256(" ".join([session, *imported]).encode()).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"graft-warm-{os.getuid()}-{name}"  # Linux takes up to 107 bytes
    requests = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with FileLock(f"{path}.lock"):
        try:
            requests.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            path.unlink(missing_ok=True)
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
                listener.bind(str(path))
                listener.listen()
                subprocess.Popen(
                    [sys.executable, "-m", "tests.warm_process", str(listener.fileno()), str(path), *imported],
                    cwd=ROOT, pass_fds=[listener.fileno()], stdin=subprocess.DEVNULL, start_new_session=True,
                )  # fmt: skip
                requests.connect(str(path))  # and waits in line until the server has imported everything
    return requests


# In the server


def serve(listener: socket.socket, path: Path) -> dict[str, Any]:
    """Fork for each request, and return it in the process that is to be the program. Ends with the last connection."""
    connected: list[socket.socket] = []
    while True:
        requests = next_request(listener, connected)
        message, files, _, _ = socket.recv_fds(requests, LARGEST_REQUEST, 4)
        while reaped():
            pass
        if not message:
            connected.remove(requests)
            requests.close()
            if not connected:
                for file in (path, Path(f"{path}.lock")):
                    file.unlink(missing_ok=True)  # nobody can connect from now on; one may just have done so
                if not select.select([listener], [], [], 0)[0]:
                    os._exit(0)
            continue
        if not os.fork():
            for one in (listener, *connected):
                one.close()
            control = socket.socket(fileno=files[3])
            if not (pid := os.fork()):
                control.close()
                for number, file in enumerate(files[:3]):
                    os.dup2(file, number)
                    os.close(file)
                return json.loads(message)
            for file in files[:3]:
                os.close(file)
            watch(pid, control)
        for file in files:
            os.close(file)


def next_request(listener: socket.socket, connected: list[socket.socket]) -> socket.socket:
    """Wait until one of the connected processes asks for something or ends; others may connect meanwhile."""
    while True:
        ready = select.select([listener, *connected], [], [])[0]
        if listener not in ready:
            return ready[0]
        connected.append(listener.accept()[0])


def reaped() -> bool:
    """Whether a process that watches a program had ended, which is forgotten now."""
    try:
        return os.waitpid(-1, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return False


def watch(pid: int, control: socket.socket) -> None:
    """Tell the test the program's process id, and how it ended. The server itself has more programs to start.

    If the test has ended first, the program is killed.
    """
    with contextlib.suppress(BrokenPipeError):
        control.send(str(pid).encode())
        ended = os.pidfd_open(pid)
        if ended not in select.select([ended, control], [], [])[0]:
            os.kill(pid, signal.SIGKILL)
        control.send(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())
    os._exit(0)


def become(request: dict[str, Any]) -> None:
    """Be `python ARGUMENTS` in this process, as far as it can still be changed."""
    import torch

    if request["session"]:
        os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    # libgomp has read the variable long ago, but no thread of it has started yet.
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))))
    what, *more = request["arguments"]
    if what == "-m":
        sys.argv, sys.path[0] = more, os.getcwd()
        runpy.run_module(more[0], run_name="__main__", alter_sys=True)
    elif what == "-c":
        code, *more = more
        sys.argv, sys.path[0] = ["-c", *more], ""
        sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(code, "<string>", "exec"), vars(sys.modules["__main__"]))
    else:
        sys.argv, sys.path[0] = [what, *more], str(Path(what).resolve().parent)
        runpy.run_path(what, run_name="__main__")


def main() -> None:
    for name in sys.argv[3:]:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # collecting garbage would copy all pages after each fork
    become(serve(socket.socket(fileno=int(sys.argv[1])), Path(sys.argv[2])))


if __name__ == "__main__":
    main()
