"""How a program that has read its arguments ends: its work done, one line about what went wrong, or stopped."""

import os
import sys
from collections.abc import Callable

from experiments.config import USAGE_ERROR


class Fault(Exception):
    """What ended the work and is nobody's usage error: one line with the reason and what to do."""


def outcome(program: str, work: Callable[[], int | None], stopped: str) -> int:
    """The exit code of `work`, which imports torch itself. After Ctrl-C, `stopped` says where things stand."""
    # Threads that spin while they wait steal the processor from the loader: several-fold slower on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        return work() or 0
    except ValueError as error:
        print(f"{program}: error: {str(error).splitlines()[-1]}", file=sys.stderr)
        return USAGE_ERROR
    except Fault as fault:
        print(f"{program}: error: {fault}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{program}: stopped; {stopped}", file=sys.stderr)
        return 130
