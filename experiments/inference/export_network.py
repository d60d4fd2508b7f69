"""Writes a trained network as a file that runs without this framework: torch.export, ONNX or OpenVINO.

The file holds the whole way from uint8 pixels to probabilities or labels: normalisation, the network, upsampling to the
image. Of a one-stage detector, it holds all up to the boxes and their scores; `suppression.py` makes objects of them.
Batch and image size are free, down to the smallest image that the network takes. That size, class names, colours and
the size rule are in its metadata.
"""

import json
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx.experimental import _config as symbolic_shapes

from experiments.inference.open_export import Runner, open_onnx, open_openvino
from experiments.inference.trained import TrainedNetwork
from heads import HEADS, find_head
from heads.box_head import BoxHead

Format = Literal["torch_export", "onnx", "openvino"]
Output = Literal["probabilities", "labels", "boxes"]
METADATA = "graft"
"""The key of the metadata, a JSON text."""
TRACED_BATCH, TRACED_SIZE, TRACED_SIZE_OF_BOXES = 2, (65, 97), (353, 449)
"""Batch, height and width of the traced example. The sides are odd, so that no layer fits them by chance. Maps of
detectors have strides up to 128, and the coarsest one needs several rows too."""


class PixelsToOutput(nn.Module):
    """uint8 images `(B, bands, H, W)`, usually RGB -> probabilities `(B, C, H, W)` or `(B, C)`, or labels without C.

    Of a detector: all its boxes `(B, N, 4 + C)`, x1, y1, x2, y2 in pixels and the score of each class.

    Raises:
        ValueError: the network cannot be exported.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, network: TrainedNetwork, output: Output) -> None:
        super().__init__()
        if network.module.crf is not None:
            raise ValueError("the network has learned a fully connected CRF, which cannot be exported")
        head = find_head(network.module.hparams["head"])
        if issubclass(head, BoxHead) and not head.one_stage:
            others = [name for name, one in HEADS.items() if issubclass(one, BoxHead) and one.one_stage]
            raise ValueError(
                f"{network.module.hparams['head']} cannot be exported: it proposes boxes before it scores them; heads "
                f"that can: {', '.join(others)}"
            )
        self.network = network.module.network
        self.output = output
        self.temperature = network.temperature
        self.register_buffer("shift", 255 * torch.tensor(network.mean).view(1, -1, 1, 1))
        self.register_buffer("scale", 1 / (255 * torch.tensor(network.std).view(1, -1, 1, 1)))

    def forward(self, images: Tensor) -> Tensor:
        pixels = (images.float() - self.shift) * self.scale
        if self.output == "boxes":
            head = cast("BoxHead", self.network.head)
            size = (pixels.shape[2], pixels.shape[3])
            return torch.cat(head.every_box(head(self.network.backbone(pixels)), size), 2)
        logits = self.network(pixels)
        return (logits / self.temperature).softmax(1) if self.output == "probabilities" else logits.argmax(1)


def metadata_of(network: TrainedNetwork, output: Output) -> dict[str, Any]:
    """What a program that runs the file needs to know, as plain values."""
    per_pixel = network.task == "segmentation"
    bands = "3, H, W), RGB" if network.in_channels == 3 else f"{network.in_channels}, H, W)"
    shapes = {
        "probabilities": "float32 (B, C, H, W)" if per_pixel else "float32 (B, C)",
        "labels": "int64 (B, H, W)" if per_pixel else "int64 (B,)",
        "boxes": "float32 (B, N, 4 + C): x1, y1, x2, y2 in pixels, then the scores of the classes; before suppression",
    }
    head, suppression = network.module.network.head, {}
    if output == "boxes":
        suppression = {"score_threshold": head.score_threshold, "overlap": head.overlap, "most": head.most}
    return {
        "task": network.task,
        "input": f"images: uint8 (B, {bands}, 0 to 255, not normalised",
        "output": f"{output}: {shapes[output]}",
        "classes": list(network.class_names),
        "colours": network.colours.tolist(),
        "size_rule": network.size_rule.kind,
        "size": list(network.size_rule.size),
        "smallest_side": network.module.network.backbone.min_size,
        "temperature": network.temperature,
        "backbone": network.module.hparams["backbone"],
        "head": network.module.hparams["head"],
        **suppression,
    }


def write_export(network: TrainedNetwork, form: Format, path: Path, output: Output = "probabilities") -> None:
    """Trace the network and write it to `path`.

    Raises:
        ValueError: the network cannot be exported.
    """
    write_program(trace(network, output), form, path, metadata_of(network, output))


def trace(network: TrainedNetwork, output: Output) -> torch.export.ExportedProgram:
    """The network as a graph whose batch and image size are free.

    Raises:
        ValueError: it has learned a CRF.
    """
    # In channels_last, a traced batch of several images would stay one of several.
    module = PixelsToOutput(network, output).eval().cpu().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    example = torch.randint(0, 256, example_shape(network), dtype=torch.uint8)
    free = {"images": dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)}
    # Otherwise the file refuses images of which some map inside has a side of one value.
    with torch.no_grad(), symbolic_shapes.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        return torch.export.export(module, (example,), dynamic_shapes=free, strict=False)


def write_program(program: torch.export.ExportedProgram, form: Format, path: Path, metadata: dict[str, Any]) -> None:
    """Write a traced network with its metadata."""
    text = json.dumps(metadata, ensure_ascii=False)
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
    """The shape of the traced example: odd sides at which the coarsest map has several rows and columns.

    Sides of one value would be traced as sides that stay one value.
    """
    backbone = network.module.network.backbone
    least, stride = backbone.min_size, min(32, backbone.reductions[-1])
    size = TRACED_SIZE_OF_BOXES if network.task == "detection" else TRACED_SIZE
    height, width = max(size[0], (least + stride) | 1), max(size[1], (least + 2 * stride) | 1)
    return TRACED_BATCH, network.in_channels, height, width


def write_onnx(program: torch.export.ExportedProgram, path: Path, metadata: str) -> None:
    """Raises ValueError if the graph holds an operator that ONNX lacks."""
    import onnx

    try:
        made = torch.onnx.export(program, dynamo=True, verbose=False, external_data=False)
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise ValueError(f"the network cannot be written as ONNX ({reason}); use --to torch_export") from error
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
        # The guards of transformers refuse batches and maps of one, because of strides: their numbers are right, too.
        module = torch.export.load(path).module(check_guards=False)

        def run_torch(images: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                return module(torch.from_numpy(images)).numpy()

        return run_torch
    return open_onnx(str(path)).run if form == "onnx" else open_openvino(str(path)).run
