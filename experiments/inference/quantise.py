"""int8 by ONNX Runtime: weights per channel, activations by the ranges they have on training images."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.base import GraftDataModule
from experiments.inference.check_export import as_batch
from experiments.inference.evaluate_all import pictures
from experiments.inference.trained import TrainedNetwork


class CalibrationImages:
    """What ONNX Runtime asks for calibration batches: training images as the network takes them."""

    def __init__(self, name: str, batches: Iterator[np.ndarray]) -> None:
        self.name = name
        self.batches = batches

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self.batches, None)
        return None if batch is None else {self.name: batch}


def calibration_batches(network: TrainedNetwork, data: GraftDataModule, count: int) -> Iterator[np.ndarray]:
    """`count` training images, evenly spaced, uint8 `(1, 3, H, W)` each."""
    split = "train" if "train" in data.splits else data.splits[0]
    picked = set(np.linspace(0, len(getattr(data, split).source) - 1, count).astype(int).tolist())
    for one in pictures(data, split):
        if isinstance(one, tuple) and one[0] in picked:
            yield as_batch(network.size_rule.apply(one[1]))


def quantise(source: Path, target: Path, network: TrainedNetwork, data: GraftDataModule, images: int) -> None:
    """Write an int8 version of an ONNX file; only convolutions and matrix products are quantised."""
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = target.with_name(target.name + ".prepared")
    metadata = {prop.key: prop.value for prop in onnx.load(str(source)).metadata_props}
    try:
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        name = onnx.load(str(prepared)).graph.input[0].name
        quantize_static(
            str(prepared),
            str(target),
            CalibrationImages(name, calibration_batches(network, data, images)),  # type: ignore[arg-type]
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
        )
    finally:
        prepared.unlink(missing_ok=True)
    model = onnx.load(str(target))
    for key, value in metadata.items():
        if key not in {prop.key for prop in model.metadata_props}:
            model.metadata_props.add(key=key, value=value)
    onnx.save(model, str(target))
