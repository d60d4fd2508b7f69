"""Opens exported ONNX and OpenVINO files on the processor, as functions of arrays. Imports no torch."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Runner = Callable[[np.ndarray], np.ndarray]
"""uint8 images `(B, C, H, W)` -> the output of the file."""


class Made(NamedTuple):
    """A network as a function, and what is worth knowing about how it computes."""

    run: Runner
    note: str = ""


def open_onnx(path: str, threads: int = 0) -> Made:
    """Open an ONNX file with ONNX Runtime. `threads`: 0 leaves the number to the library."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)  # errors only: it warns of shapes that are free on purpose
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return Made(lambda images: session.run(None, {name: images})[0])


def open_openvino(path: str, threads: int = 0, precision: str | None = "f32") -> Made:
    """Open an OpenVINO or ONNX file with OpenVINO.

    Args:
        threads: 0 leaves the number to the library.
        precision: "f32", or None for OpenVINO's own choice: bfloat16, which is less exact, on processors that have it.
    """
    import openvino

    options: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    if precision is not None:
        options["INFERENCE_PRECISION_HINT"] = precision
    model = openvino.Core().compile_model(path, "CPU", options)
    used = model.get_property("INFERENCE_PRECISION_HINT").to_string()
    return Made(lambda images: np.array(model(images)[0]), "" if precision else f"computes in {used}")
