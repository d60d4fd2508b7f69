"""Explain in one line why a data-loader worker failed for want of memory, shared memory or open files."""

import re
import shutil
import traceback

from datamodules.download import readable_size
from datamodules.node_folder import memory_root

OPEN_FILES = re.compile(r"Too many open files|items of ancdata")
"""The second is Python's message if this process may not open the file of a batch that a worker sends."""
SHARED_MEMORY = re.compile(r"Bus error|shared memory ?\(shm\)|shared memory object|</torch_")
DIED = re.compile(r"DataLoader worker \(pid")
"""PyTorch's words if a worker has died. An exception that a worker reports is worded differently."""
OTHER_SIGNAL = re.compile(r"killed by signal: (?!Killed|Terminated)([\w ]+)")


def explain_worker_fault(error: BaseException) -> str | None:
    """What happened to a worker and what the user can do; None if the error is of another kind."""
    text = str(error)
    if OPEN_FILES.search(text):
        return "a process needs more open files than the system allows it; raise the limit with `ulimit -n 65536`"
    if SHARED_MEMORY.search(text):
        return (
            f"the shared memory through which workers send their batches is full ({memory_root()} has "
            f"{readable_size(shutil.disk_usage(memory_root()).total)}); enlarge it (with Docker: `docker run "
            "--shm-size=8g` or `--ipc=host`), or use --workers 0 or --cache none"
        )
    if signal := OTHER_SIGNAL.search(text):
        return f"a data-loader worker ended with {signal[1]}; --workers 0 runs the same in one process"
    # A worker may also die after it has made a batch and before the training process has taken it over.
    taking_over = any(frame.name.startswith("rebuild_storage") for frame in traceback.extract_tb(error.__traceback__))
    if DIED.search(text) or taking_over:
        return "a data-loader worker was killed, as the system does when memory runs out; use fewer --workers"
    return None
