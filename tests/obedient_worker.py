"""A worker that obeys its parent alone. Processes that are spawned import this file, so it imports little.

Of datamodules/ it takes one file without the whole package, and so without torch.
"""

import importlib.util
import threading
import time
from pathlib import Path

FILE = Path(__file__).resolve().parent.parent / "datamodules" / "worker_signals.py"

# As importing torch does: a signal may come to any thread that does not block it.
threading.Thread(target=time.sleep, args=(100,), daemon=True).start()


def work(ready: str) -> None:
    spec = importlib.util.spec_from_file_location("worker_signals", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.ignore_signals_except_parents()
    Path(ready).touch()
    time.sleep(60)
