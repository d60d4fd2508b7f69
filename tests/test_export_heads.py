"""Heads as files: ONNX and torch.export compute what PyTorch computes, at sizes that no stride divides.

One head of each kind, because the exporters take ten seconds for each; experiments/benchmarks/export_matrix.py exports
them all, on real backbones.
"""

import contextlib
import io
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental import _config as symbolic_shapes

from backbones import BACKBONES
from backbones.atrous import atrous_steps
from backbones.backbone import Backbone
from backbones.classifiers import PooledClassifier
from backbones.fully_connected import DenseScores, pool_to
from backbones.swin import WindowAttention
from datamodules.size_rules import SizeRule
from experiments.inference.check_boxes import distance
from experiments.inference.export_network import PixelsToOutput, runner, trace, write_program
from experiments.inference.trained import TrainedNetwork
from experiments.training.build import MODULES
from heads import HEADS
from tests.conftest import randomise

SIZES = ((65, 97), (31, 39))
"""Heights and widths in pixels. At the second, the coarsest map is a single row."""
SIZES_OF_BOXES = ((150, 97), (65, 290))
"""On both sides of the stride of 128 that detectors have."""
DEEP = ("fcos",)
"""Heads whose towers take half a minute as ONNX; that of retinanet is written."""
CHEAPER = {
    "spp": {"hidden": 16},
    "pspnet": {"width": 16},
    "fpn": {"pyramid_width": 32, "width": 32},
    "dilatednet": {"layers": 7, "padding": "reflect"},
    "retinanet": {"width": 32},
    "fcos": {"width": 64},
    "ssd": {"width": 16, "side": 300},
    "yolov1": {"width": 8, "hidden": 16},
}
"""Options under which a head is the same network, only narrower."""
TOWERS = {"retinanet": 1, "fcos": 3}
"""Parts of a tower that are kept, a convolution and what follows it. The other three are the same again."""
EXPORTED = (
    "classifier", "spp", "fcn8s", "deeplab", "pspnet", "lraspp", "dilatednet", "hypercolumn", "unet", "fpn",
    "retinanet", "fcos", "ssd", "yolov1",
)  # fmt: skip
"""Heads whose layers are those of all heads that are exported."""
BOTH_FORMATS = ("fcn8s", "pspnet")
"""Those that torch.export's own format is tried on, too. ONNX is written from the same graph."""


class Tiny(Backbone):
    """Five maps, one convolution each."""

    def __init__(
        self, variant: str, *, weights: str | None = None, output_stride: int = 32, in_channels: int = 3
    ) -> None:
        super().__init__(variant)
        steps = atrous_steps((2, 2, 2, 2, 2), output_stride)
        self.channels = (8, 8, 16, 16, 32)
        self.reductions = tuple(step.reduction for step in steps)
        self.layers = nn.ModuleList(
            nn.Conv2d(before, after, 3, step.stride, step.dilation, step.dilation)
            for before, after, step in zip((in_channels, *self.channels), self.channels, steps, strict=False)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for layer in self.layers:
            x = layer(x).relu()
            maps.append(x)
        return maps

    def classifier(self, num_classes: int) -> nn.Module:
        return PooledClassifier("fc", nn.Linear(32, num_classes))


def network_of(head: str, options: dict[str, object]) -> TrainedNetwork:
    module = MODULES[HEADS[head].task]("tiny", head, ("a", "b", "c"), head_options=options)
    module = randomise(module).eval().requires_grad_(False)
    for branch in module.network.head.head.children() if head in TOWERS else ():
        assert len(branch.conv) == 4 * TOWERS[head]
        branch.conv = branch.conv[: TOWERS[head]]
    return TrainedNetwork(
        module, ("a", "b", "c"), np.zeros((3, 3), np.uint8), SizeRule("own", (64, 64)), (0.5,) * 3, (0.25,) * 3
    )


def forms_of(head: str) -> dict[str, str]:
    """The formats to try, and a file name of each."""
    forms = {"torch_export": "file.pt2", "onnx": "file.onnx"}
    if head in DEEP:
        del forms["onnx"]
    elif head not in BOTH_FORMATS:
        del forms["torch_export"]
    return forms


def export_differences(network: TrainedNetwork, folder: Path, sizes: tuple[tuple[int, int], ...]) -> dict[str, float]:
    """The largest difference of a probability, or of a box, in a batch of two and of one, by file format and size."""
    boxes = network.task == "detection"
    output = "boxes" if boxes else "probabilities"
    reference = PixelsToOutput(network, output).eval()
    found = {}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # of the exporters, about themselves
        program = trace(network, output)
        for form, name in forms_of(network.module.hparams["head"]).items():
            write_program(program, form, folder / name, {})  # type: ignore[arg-type]
            compute = runner(form, folder / name)  # type: ignore[arg-type]
            for batch, size in zip((2, 1), sizes, strict=True):
                images = np.random.default_rng(0).integers(0, 256, (batch, 3, *size), np.uint8)
                with torch.inference_mode():
                    expected = reference(torch.from_numpy(images)).numpy()
                assert expected.std() > 1e-4, "constant probabilities prove nothing"
                exported = compute(images)
                assert exported.shape == expected.shape
                apart = distance(exported, expected, size) if boxes else float(np.abs(exported - expected).max())
                found[f"{form} {size}"] = apart
    return found


@pytest.mark.parametrize("head", EXPORTED)
def test_every_kind_of_head_is_exported_for_all_sizes(
    head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BACKBONES, "tiny", partial(Tiny, "tiny"))
    network = network_of(head, CHEAPER.get(head, {}))
    sizes = SIZES_OF_BOXES if network.task == "detection" else SIZES
    differences = export_differences(network, tmp_path, sizes)
    assert max(differences.values()) <= 1e-4, differences


def kinds_of_layers(head: str) -> set[type[nn.Module]]:
    """Classes of the parts of a head; the head itself, whose forward pass joins them, is not among them."""
    network = MODULES[HEADS[head].task]("tiny", head, ("a", "b", "c"), head_options=CHEAPER.get(head, {})).network
    return {type(part) for part in network.head.modules() if part is not network.head}


def test_the_other_heads_are_made_of_the_same_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new head of other layers belongs to EXPORTED."""
    monkeypatch.setitem(BACKBONES, "tiny", partial(Tiny, "tiny"))
    exported = set[type[nn.Module]]().union(*map(kinds_of_layers, EXPORTED))
    for head in [name for name, build in HEADS.items() if getattr(build, "one_stage", True)]:
        assert kinds_of_layers(head) <= exported, head


class FullyConnected(Tiny):
    """With a classifier over a map of fixed size, as in VGG."""

    def classifier(self, num_classes: int) -> nn.Module:
        class Pooled(nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(pool_to(x, 3).flatten(1))

        return Pooled(32 * 9, num_classes)


def test_a_classifier_of_one_map_size_is_exported_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKBONES, "tiny", partial(FullyConnected, "tiny"))
    differences = export_differences(network_of("classifier", {}), tmp_path, SIZES)
    assert max(differences.values()) <= 1e-4, differences


def test_dense_scores_are_exported_for_all_sizes() -> None:
    layer = randomise(DenseScores(3, (1, 2))).eval()
    free = torch.export.Dim.DYNAMIC
    shapes = {"x": {2: free, 3: free}}
    exported = torch.export.export(layer, (torch.randn(1, 4096, 6, 9),), dynamic_shapes=shapes).module(
        check_guards=False
    )
    for size in ((6, 9), (2, 3), (7, 2)):
        x = torch.randn(1, 4096, *size)
        torch.testing.assert_close(exported(x), layer(x))


def test_shifted_windows_are_exported_for_one_window_and_for_several() -> None:
    """A map of one window is not shifted, whatever the traced map was."""
    layer = randomise(WindowAttention(8, 2, 4, 2)).eval()
    free = torch.export.Dim.DYNAMIC
    with torch.no_grad(), symbolic_shapes.patch(backed_size_oblivious=True):
        exported = torch.export.export(
            layer, (torch.randn(2, 9, 13, 8),), dynamic_shapes={"x": {1: free, 2: free}}, strict=False
        ).module(check_guards=False)
    for size in ((9, 13), (4, 4), (3, 11), (12, 2)):
        x = torch.randn(2, *size, 8)
        torch.testing.assert_close(exported(x), layer(x))
