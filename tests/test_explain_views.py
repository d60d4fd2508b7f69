"""explain.py's views of a network: activations, filters, gates, receptive fields and the steps of the CRF."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from experiments.explain import main as explain
from experiments.explaining.activations import strongest_hits
from experiments.explaining.crf_steps import beliefs
from experiments.explaining.examples import Examples, prepared
from experiments.explaining.filters import first_filters
from experiments.explaining.gates import gate_values
from experiments.explaining.patches import box_of, cut, projection_picture
from experiments.explaining.receptive_fields import effective_field, measures, theory_of
from experiments.inference.trained import load
from heads.crf import PRESETS, DenseCRF
from tests.explained_networks import bare, flags_of, network_of, picture, read_strictly

# ---- activations


def test_the_strongest_activations_are_those_of_a_search_through_all(tmp_path: Path) -> None:
    network = network_of("lenet5", "classifier", 32)
    for i in range(14):
        Image.fromarray(picture(32, 36, i)).save(tmp_path / f"{i:02d}.png")
    flags = flags_of(inputs=[str(tmp_path)], unit=[5, 2])
    name, best, count = strongest_hits(network, Examples(network, flags), flags)
    assert (name, count) == ("c3", 14)
    values = {}
    for i in range(14):
        with torch.no_grad():
            backbone = network.module.network.backbone
            x = prepared(network, picture(32, 36, i))[1]
            values[f"{i:02d}.png"] = float(backbone.activation(backbone.c3(backbone(x)[0]))[0, 5].max())
    expected = sorted((value for value in values.values() if value > 0), reverse=True)[:9]
    assert [hit.strength for hit in best[5]] == pytest.approx(expected)
    assert [values[hit.example.name] for hit in best[5]] == pytest.approx(expected)


def test_patches_are_the_receptive_field_also_at_the_border() -> None:
    network = network_of("lenet5", "classifier", 32)
    image = picture(32, 36)
    theory = theory_of(network.module.network, prepared(network, image)[1], None)
    assert theory.field.size == 14  # 5 + 1 + 2 * 4: convolution, pool, convolution
    box = box_of(theory, (1, 2), image.shape)
    assert (box["top"], box["bottom"], box["left"], box["right"]) == (2, 15, 4, 17)
    np.testing.assert_array_equal(cut(image, box, 0), image[2:16, 4:18])
    cut_at_border = cut(image, {"top": -2, "bottom": 3, "left": 30, "right": 38}, 7)
    assert cut_at_border.shape == (6, 9, 3)
    np.testing.assert_array_equal(cut_at_border[2:, :6], image[:4, 30:])
    assert (cut_at_border[:2] == 7).all()
    assert (cut_at_border[:, 6:] == 7).all()


def test_a_few_strong_values_do_not_hide_a_projection() -> None:
    values = np.full((3, 40, 40), 0.01)
    values[:, 20, 20] = 100
    values[:, :5] = 0
    drawn = projection_picture(values)
    assert (drawn[:5] == 128).all()
    assert drawn[10].min() > 250
    assert (projection_picture(np.zeros((3, 4, 4))) == 128).all()


# ---- filters


@pytest.mark.parametrize(("backbone", "towers", "filters"), [("alexnet_2gpu", 2, 96), ("lenet5", 1, 6)])
def test_filters_stand_in_towers(backbone: str, towers: int, filters: int) -> None:
    network = network_of(backbone, "classifier" if towers == 1 else "deeplabv3", 71)
    (found,) = first_filters(network, Examples(network, flags_of()), flags_of())
    assert (found.facts["towers"], found.facts["filters"]) == (towers, filters)
    drawn = np.array(found.picture)
    framed = np.flatnonzero((drawn == 255).all((0, 2)))  # columns of white: margins, and the gap between the towers
    inner = [part for part in np.split(framed, np.flatnonzero(np.diff(framed) > 1) + 1) if len(part) >= 6]
    assert len(inner) == towers + 1
    weight = (
        network.module.network.backbone.features[0].weight if towers == 2 else network.module.network.backbone.c1.weight
    )
    norms = weight.flatten(1).norm(dim=1)
    assert found.facts["norms"] == pytest.approx(norms.tolist(), abs=1e-5)


# ---- gates


def test_gates_are_the_means_over_the_pictures_of_a_class(tmp_path: Path) -> None:
    network = network_of("mobilenet_v3_small", "classifier", 48)
    for group, seeds in (("a", (0, 1)), ("b", (2, 3, 4))):
        (tmp_path / group).mkdir()
        for seed in seeds:
            Image.fromarray(picture(48, 48, seed) // (1 + 3 * (group == "a"))).save(tmp_path / group / f"{seed}.png")
    flags = flags_of(inputs=[str(tmp_path)])
    values, counts = gate_values(network, Examples(network, flags))
    assert counts == {"a": 2, "b": 3}
    name = next(iter(values))
    module = network.module.network.backbone.get_submodule(name)
    kept: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda module, args: kept.append(module.gate(args[0]).flatten()))
    with torch.no_grad():
        for seed in (2, 3, 4):
            network.module.network(prepared(network, picture(48, 48, seed))[1])
    handle.remove()
    np.testing.assert_allclose(values[name]["b"], torch.stack(kept).mean(0).numpy(), atol=1e-6)
    assert np.abs(values[name]["a"] - values[name]["b"]).max() > 1e-3


# ---- receptive fields


@pytest.mark.parametrize(("backbone", "layer"), [("resnet18", "2"), ("vgg11_bn", "3"), ("mobilenet_v2", "2")])
def test_the_effective_field_lies_inside_the_theoretical(backbone: str, layer: str) -> None:
    network, x = bare(backbone), torch.randn(1, 3, 96, 100)
    theory = theory_of(network, x, layer)
    _, place, field = effective_field(network, x, layer)
    box = theory.box(*place)
    numbers = measures(field, box)
    assert numbers["share_inside_theoretical"] == 1
    assert 0 < numbers["effective_side"] <= numbers["theoretical_side"] < 96
    top, bottom, left, right = box
    touched = np.argwhere(field)
    assert (touched.min(0) >= (top, left)).all()
    assert (touched.max(0) <= (bottom, right)).all()


def test_measures_of_a_gaussian_are_its_own() -> None:
    axis = np.arange(81) - 40.0
    gauss = np.exp(-(axis**2) / 2 / 5**2)
    numbers = measures(np.outer(gauss, gauss), (0, 80, 0, 80))
    assert numbers["deviation_of_rows"] == pytest.approx(5, rel=1e-3)
    # a disc of radius 5 sqrt(2 ln(1 / 0.0455))
    assert numbers["effective_side"] == pytest.approx(5 * np.sqrt(2 * np.log(1 / 0.0455) * np.pi), rel=0.02)


# ---- CRF


def test_beliefs_go_from_the_networks_to_the_whole_crf(crf_run: Path, crf_folder: Path, tmp_path: Path) -> None:
    image = picture(24, 32)
    probabilities = torch.randn(1, 3, 24, 32).softmax(1)
    crf = DenseCRF(PRESETS["pydensecrf"])
    first, last = beliefs(crf, probabilities, image, [0, 10])
    torch.testing.assert_close(first, probabilities.clamp(min=1e-5), atol=1e-4, rtol=1e-3)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    torch.testing.assert_close(last, DenseCRF(PRESETS["pydensecrf"])(probabilities, pixels, from_logits=False))
    assert crf.settings == PRESETS["pydensecrf"]

    images, masks = crf_folder / "val" / "images", crf_folder / "val" / "masks"
    arguments = [str(crf_run), str(images), "--masks", str(masks), "--limit", "2", "--out", str(tmp_path)]
    assert explain([*arguments, "--method", "crf", "--device", "cpu"]) == 0
    facts = read_strictly(tmp_path / "0.crf.json")
    assert [entry["iteration"] for entry in facts["iterations"]] == [0, 1, 2, 3, 5, 10]
    truth = np.array(Image.open(masks / "0.png"))
    network = load(crf_run, "cpu")
    with torch.no_grad():
        labels = network.module.network(prepared(network, network.read(images / "0.png"))[1])[0].argmax(0).numpy()
    ious = [((labels == c) & (truth == c)).sum() / ((labels == c) | (truth == c)).sum() for c in (0, 1)]
    assert facts["iterations"][0]["miou"] == pytest.approx(np.mean(ious), abs=1e-6)
