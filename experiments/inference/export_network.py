"""Writes a trained network as a file that runs without this framework: torch.export, ONNX or OpenVINO.

The file holds the whole way from uint8 pixels to probabilities or labels: normalisation, the network, upsampling to the
image. The batch size is free, and for segmentation the image size, down to the network's largest stride. Class names,
colours and the size rule are in its metadata.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from experiments.inference.trained import TrainedNetwork

Format = Literal["torch_export", "onnx", "openvino"]
Output = Literal["probabilities", "labels"]
SUFFIXES = {"torch_export": ".pt2", "onnx": ".onnx", "openvino": ".xml"}
METADATA = "graft"
"""The key of the metadata, a JSON text."""
TRACED_BATCH, TRACED_SIZE = 2, (65, 97)
"""Of the example that is traced: a batch, and odd sides, so that nothing depends on them by chance."""
Runner = Callable[[np.ndarray], np.ndarray]
"""Images uint8 `(B, 3, H, W)` -> probabilities float32 `(B, C, H, W)` or `(B, C)`, or labels int64 without C."""


class PixelsToOutput(nn.Module):
    """uint8 images `(B, bands, H, W)`, usually RGB -> probabilities `(B, C, H, W)` or `(B, C)`, or labels without C."""

    shift: Tensor
    scale: Tensor

    def __init__(self, network: TrainedNetwork, output: Output) -> None:
        super().__init__()
        if network.module.crf is not None:
            raise ValueError("the network has learned a fully connected CRF, which cannot be exported")
        self.network = network.module.network
        self.output = output
        self.temperature = network.temperature
        self.register_buffer("shift", 255 * torch.tensor(network.mean).view(1, -1, 1, 1))
        self.register_buffer("scale", 1 / (255 * torch.tensor(network.std).view(1, -1, 1, 1)))

    def forward(self, images: Tensor) -> Tensor:
        logits = self.network((images.float() - self.shift) * self.scale)
        return (logits / self.temperature).softmax(1) if self.output == "probabilities" else logits.argmax(1)


def metadata_of(network: TrainedNetwork, output: Output) -> dict[str, Any]:
    """What a program that runs the file needs to know, as plain values."""
    per_pixel = network.task == "segmentation"
    bands = "3, H, W), RGB" if network.in_channels == 3 else f"{network.in_channels}, H, W)"
    shapes = {
        "probabilities": "float32 (B, C, H, W)" if per_pixel else "float32 (B, C)",
        "labels": "int64 (B, H, W)" if per_pixel else "int64 (B,)",
    }
    return {
        "task": network.task,
        "input": f"images: uint8 (B, {bands}, 0 to 255, not normalised",
        "output": f"{output}: {shapes[output]}",
        "classes": list(network.class_names),
        "colours": network.colours.tolist(),
        "size_rule": network.size_rule.kind,
        "size": list(network.size_rule.size),
        "temperature": network.temperature,
        "backbone": network.module.hparams["backbone"],
        "head": network.module.hparams["head"],
    }


def write_export(network: TrainedNetwork, form: Format, path: Path, output: Output = "probabilities") -> None:
    """Trace the network and write it to `path`.

    Raises:
        ValueError: the network cannot be exported with free sizes, or the format's package is missing.
    """
    module = PixelsToOutput(network, output).eval().cpu()
    example = torch.randint(0, 256, example_shape(network), dtype=torch.uint8)
    axes = (0, 2, 3) if network.task == "segmentation" else (0,)
    free = {"images": dict.fromkeys(axes, torch.export.Dim.DYNAMIC)}
    with torch.no_grad():
        program = torch.export.export(module, (example,), dynamic_shapes=free, strict=False)
    text = json.dumps(metadata_of(network, output), ensure_ascii=False)
    if form == "torch_export":
        torch.export.save(program, path, extra_files={METADATA: text})
        return
    onnx_path = path if form == "onnx" else path.with_suffix(".onnx")
    write_onnx(program, onnx_path, text)
    if form == "openvino":
        try:
            write_openvino(onnx_path, path, text)
        finally:
            onnx_path.unlink()


def example_shape(network: TrainedNetwork) -> tuple[int, int, int, int]:
    """The shape of the traced example: odd sides that the network takes; a classifier's own size."""
    if network.task == "classification":
        return TRACED_BATCH, network.in_channels, *network.size_rule.size
    least = network.module.network.backbone.min_size
    height, width = TRACED_SIZE
    return TRACED_BATCH, network.in_channels, max(height, least | 1), max(width, (least + 32) | 1)


def write_onnx(program: torch.export.ExportedProgram, path: Path, metadata: str) -> None:
    import onnx

    made = torch.onnx.export(program, dynamo=True, verbose=False, external_data=False)
    assert made is not None
    made.save(str(path), external_data=False)
    model = onnx.load(str(path))
    model.metadata_props.add(key=METADATA, value=metadata)
    onnx.save(model, str(path))


def write_openvino(onnx_path: Path, path: Path, metadata: str) -> None:
    import openvino

    model = openvino.convert_model(str(onnx_path))
    model.set_rt_info(metadata, [METADATA])
    openvino.save_model(model, str(path), compress_to_fp16=False)


def runner(form: Format, path: Path) -> Runner:
    """The exported file as a function."""
    if form == "torch_export":
        module = torch.export.load(path).module(check_guards=False)  # they hold the parity of the sizes

        def run_torch(images: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                return module(torch.from_numpy(images)).numpy()

        return run_torch
    if form == "onnx":
        import onnxruntime

        onnxruntime.set_default_logger_severity(3)  # errors only: it warns of shapes that are free on purpose
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda images: session.run(None, {name: images})[0]
    import openvino

    # Without this OpenVINO chooses bfloat16 on processors that have it, which is faster and less exact.
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: compiled(images)[0]
