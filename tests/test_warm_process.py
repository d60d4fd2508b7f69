"""A program that is forked from a warm process looks like one that was started."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.warm_process import run_python, start_python

SHOW = """
import json, os, sys
print(json.dumps([sys.argv, os.getcwd(), dict(os.environ), __name__, sys.stdin.read(), sys.path[0]]))
print(os.getsid(0) == os.getpid(), file=sys.stderr)
sys.exit(int(sys.argv[1]))
"""


@pytest.mark.parametrize("form", ["code", "file", "module"])
@pytest.mark.parametrize("session", [False, True])
def test_it_shows_what_a_started_process_shows(form: str, session: bool, tmp_path: Path) -> None:
    (tmp_path / "shown.py").write_text(SHOW)
    arguments = {"code": ["-c", SHOW], "file": [str(tmp_path / "shown.py")], "module": ["-m", "shown"]}[form]
    options = {"cwd": tmp_path, "env": {"PATH": os.environ["PATH"], "A": "ä\n"}, "start_new_session": session}
    real = subprocess.run(
        [sys.executable, *arguments, "3"], stdin=subprocess.DEVNULL, capture_output=True, text=True, **options
    )  # fmt: skip
    warm = run_python([*arguments, "3"], **options)
    # Python itself adds a variable for the C locale.
    assert warm.stdout == real.stdout.replace(', "LC_CTYPE": "C.UTF-8"', "")
    assert (warm.returncode, warm.stderr) == (real.returncode, real.stderr)


@pytest.mark.parametrize(
    ("code", "expected", "error"),
    [
        ("import atexit; atexit.register(print, 'at the end')", 0, ""),
        ("raise ValueError('mist' + 'ake')", 1, "ValueError: mistake"),
        ("import sys; sys.exit('a message')", 1, "a message"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGINT)", -signal.SIGINT, "KeyboardInterrupt"),
        ("import os; os._exit(7)", 7, ""),
    ],
)
def test_it_ends_as_a_started_process_does(code: str, expected: int, error: str) -> None:
    done = run_python(["-c", code])
    assert done.returncode == expected
    assert (done.stderr.strip().splitlines() or [""])[-1] == error
    assert ("at the end" in done.stdout) == ("atexit" in code)


def test_it_gets_signals_and_others_go_on(tmp_path: Path) -> None:
    sleep = ["-c", "import time; print('up', flush=True); time.sleep(100)"]
    with (tmp_path / "out").open("w") as out:
        killed, other = start_python(sleep, stdout=out), start_python(sleep, stdout=out)
    assert killed.poll() is None
    killed.send_signal(signal.SIGKILL)
    assert killed.wait(20) == -signal.SIGKILL
    assert not Path(f"/proc/{killed.pid}").exists()
    assert other.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        other.wait(0.1)
    other.send_signal(signal.SIGTERM)
    assert other.wait(20) == -signal.SIGTERM
    assert run_python(["-c", "print(1)"]).stdout == "1\n"


def test_it_computes_with_as_many_threads_as_asked() -> None:
    for count in ("1", "2"):
        code = "import torch; print(torch.get_num_threads(), bool(torch.ones(1000, 1000).exp().sum() > 0))"
        assert run_python(["-c", code], env=os.environ | {"OMP_NUM_THREADS": count}).stdout == f"{count} True\n"


def test_one_that_does_not_end_is_killed() -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        run_python(["-c", "import time; time.sleep(100)"], timeout=0.5)


def test_what_its_own_processes_write_is_waited_for() -> None:
    code = "import subprocess; subprocess.Popen(['sh', '-c', 'sleep 0.5; echo late']); print('early', flush=True)"
    assert run_python(["-c", code]).stdout == "early\nlate\n"


def test_it_does_not_outlive_the_test() -> None:
    pid = start_python(["-c", "import time; time.sleep(100)"]).pid  # nothing waits for it any more
    end = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < end
        time.sleep(0.02)
