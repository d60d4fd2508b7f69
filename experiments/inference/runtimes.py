"""The ways to run a trained network that benchmark.py compares, by name. Imports no torch."""

import importlib.util
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.inference.open_export import Made, open_onnx, open_openvino


@dataclass(frozen=True)
class Job:
    """What a process needs to load its network.

    Args:
        checkpoint: run folder or checkpoint.
        files: exported files by kind: "onnx", "int8", "openvino".
        threads: processor threads that it may use.
        device: of PyTorch's ways; the others run on the processor.
    """

    checkpoint: str
    files: dict[str, str]
    threads: int
    device: str


@dataclass(frozen=True)
class Runtime:
    """One way to run a network.

    Args:
        make: loads it.
        file: kind of exported file that it runs; "" for the checkpoint.
        needs: packages.
        reduced: whether it computes in fewer bits than float32, by design.
        compiles: whether it needs a C++ compiler on the processor.
    """

    make: Callable[[Job], Made]
    file: str = ""
    needs: tuple[str, ...] = ()
    reduced: bool = False
    compiles: bool = False

    def missing(self, device: str) -> str:
        """Why it cannot run here; "" if it can."""
        compilers = [os.environ.get("CXX", ""), "g++", "clang++"]
        if self.compiles and device == "cpu" and not any(map(shutil.which, filter(None, compilers))):
            return "needs a C++ compiler, g++ or clang++"
        absent = [name for name in self.needs if importlib.util.find_spec(name) is None]
        return f"needs {', '.join(absent)}; pip install 'graft[export]'" if absent else ""


def torch_network(job: Job, *, channels_last: bool = False, fold: bool = False) -> Any:
    """The network with normalisation and softmax, `images uint8 -> probabilities`, as a module."""
    import torch

    from experiments.inference.export_network import PixelsToOutput
    from experiments.inference.protocol import fold_norms
    from experiments.inference.trained import load

    torch.set_num_threads(job.threads)
    network = load(job.checkpoint, job.device)
    if fold:
        fold_norms(network)
    form = torch.channels_last if channels_last else torch.contiguous_format
    return PixelsToOutput(network, "probabilities").eval().to(job.device).to(memory_format=form)  # type: ignore[call-overload]


def run_module(module: Callable[[Any], Any], device: str, *, bf16: bool = False) -> Made:
    """A PyTorch module as a function of arrays."""
    import torch

    @torch.no_grad()
    def run(images: np.ndarray) -> np.ndarray:
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16):
            return module(torch.from_numpy(images).to(device)).float().cpu().numpy()

    return Made(run)


def eager(job: Job) -> Made:
    return run_module(torch_network(job), job.device)


def channels_last(job: Job) -> Made:
    return run_module(torch_network(job, channels_last=True), job.device)


def folded(job: Job) -> Made:
    return run_module(torch_network(job, channels_last=True, fold=True), job.device)


def bf16(job: Job) -> Made:
    return run_module(torch_network(job, channels_last=True, fold=True), job.device, bf16=True)


def compiled(job: Job) -> Made:
    import logging

    import torch

    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns that there is no GPU
    return run_module(torch.compile(torch_network(job, channels_last=True)), job.device)


def onnx_file(job: Job) -> Made:
    return open_onnx(job.files["onnx"], job.threads)


def int8_file(job: Job) -> Made:
    return open_onnx(job.files["int8"], job.threads)


def openvino_f32(job: Job) -> Made:
    return open_openvino(job.files["openvino"], job.threads, "f32")


def openvino_own(job: Job) -> Made:
    return open_openvino(job.files["openvino"], job.threads, None)


ONNX = ("onnx", "onnxscript", "onnxruntime")
RUNTIMES: dict[str, Runtime] = {
    "eager": Runtime(eager),
    "channels_last": Runtime(channels_last),
    "folded": Runtime(folded),
    "bf16": Runtime(bf16, reduced=True),
    "compiled": Runtime(compiled, compiles=True),
    "onnxruntime": Runtime(onnx_file, "onnx", ONNX),
    "openvino_f32": Runtime(openvino_f32, "openvino", (*ONNX, "openvino")),
    "openvino": Runtime(openvino_own, "openvino", (*ONNX, "openvino"), reduced=True),
    "int8": Runtime(int8_file, "int8", ONNX, reduced=True),
}
"""The first is what the others are compared with. "folded" and "bf16" are channels-last too; "bf16" is folded."""


def size_in_mb(path: Path) -> float:
    """Size of an exported file in MB (10^6 bytes), with OpenVINO's second file."""
    files = [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]
    return sum(file.stat().st_size for file in files) / 1e6
