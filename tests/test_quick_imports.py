"""What a run imports before it trains, in a process of its own: nothing that it does not use."""

import gc
import json
import subprocess
import sys
from pathlib import Path

from experiments.command_line.quick_imports import quick_imports

ROOT = Path(__file__).resolve().parent.parent
UNUSED = {
    "matplotlib", "scipy.signal", "scipy.stats", "scipy.optimize", "scipy.interpolate", "scipy.io", "sklearn", "wandb",
    "tensorboard", "onnx", "pycocotools", "transformers", "torch.distributed.checkpoint",
}  # fmt: skip
CODE = """
import gc, json, sys
from experiments.command_line.quick_imports import quick_imports
with quick_imports():
    from experiments.training.train import train
    searched = gc.isenabled()
imported = sorted(sys.modules)
from lightning_utilities.core.imports import RequirementCache, package_available
import matplotlib.pyplot
found = [bool(RequirementCache(name)) and package_available(name) for name in ("matplotlib", "scipy")]
print(json.dumps([imported, searched, gc.isenabled(), gc.get_freeze_count(), found]))
"""


def test_a_run_imports_nothing_that_it_does_not_use() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True, check=True)
    imported, searched_within, searched_after, frozen, found_after = json.loads(done.stdout)
    assert "lightning.pytorch" in imported
    assert "torchmetrics" in imported
    assert not UNUSED & set(imported)
    assert (searched_within, searched_after) == (False, True)  # for garbage
    assert frozen > 100_000
    assert found_after == [True, True]  # torchmetrics alone does without


def test_a_process_that_has_torch_is_left_alone() -> None:
    frozen = gc.get_freeze_count()
    with quick_imports():
        assert gc.isenabled()
    assert gc.get_freeze_count() == frozen
