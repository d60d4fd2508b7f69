"""Programs keep the memory that they free, for the next array of that size, and their threads sleep after a moment."""

import os
import platform

import pytest

from tests.warm_process import run_python

FAULTS = """
import resource
import torch
from experiments.command_line.process import run_program

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

run_program("a.py", lambda: print(*[faults() for _ in range(40)]), "")
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc has this setting")
@pytest.mark.parametrize(("environment", "kept"), [({}, True), ({"MALLOC_TRIM_THRESHOLD_": "100000"}, False)])
def test_freed_memory_is_kept_unless_the_user_sets_malloc(environment: dict[str, str], kept: bool) -> None:
    done = run_python(["-c", FAULTS], env={**os.environ, **environment})
    first, *later = map(int, done.stdout.split())
    assert first > 1_000
    assert (min(later) < 100) == kept  # glibc's first arrays do not fit where one was freed


@pytest.mark.parametrize(("policy", "set_to"), [(None, "passive 3000"), ("active", "active None")])
def test_threads_spin_briefly_unless_the_user_says_how(policy: str | None, set_to: str) -> None:
    code = (
        "import os; from experiments.command_line.process import run_program; "
        "run_program('a.py', lambda: print(os.environ['OMP_WAIT_POLICY'], os.environ.get('GOMP_SPINCOUNT')), '')"
    )
    environment = {
        name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    }
    if policy is not None:
        environment["OMP_WAIT_POLICY"] = policy
    assert run_python(["-c", code], env=environment).stdout.strip() == set_to
