"""export.py: files that compute what the network computes, at any size, and refusal of those that do not."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from backbones import mobilenet_v3
from experiments.export import main as export
from experiments.inference import export_network
from experiments.inference.export_network import runner
from experiments.inference.trained import TrainedNetwork, load
from experiments.run import main as run
from tests.conftest import crf_arguments
from tests.test_structure import PACKAGES
from tests.test_structure import ROOT as PROJECT

SIZES = ((48, 64), (33, 47), (64, 96), (71, 65))
GRAPHS: dict[tuple[str, ...], torch.export.ExportedProgram] = {}
"""The traced networks, by backbone, head and output."""
FILES: dict[tuple[int, str], bytes] = {}
"""The ONNX files, by graph and metadata."""


@pytest.fixture(autouse=True)
def _each_graph_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every network is traced, and written as ONNX, once for all tests: that takes ten seconds."""
    trace, write = export_network.trace, export_network.write_onnx

    def trace_once(network: TrainedNetwork, output: export_network.Output) -> torch.export.ExportedProgram:
        key = (network.module.hparams["backbone"], network.module.hparams["head"], output)
        if key not in GRAPHS:
            GRAPHS[key] = trace(network, output)
        return GRAPHS[key]

    def write_once(program: torch.export.ExportedProgram, path: Path, metadata: str) -> None:
        key = (id(program), metadata)
        if key not in FILES:
            write(program, path, metadata)
            FILES[key] = path.read_bytes()
        path.write_bytes(FILES[key])

    monkeypatch.setattr(export_network, "trace", trace_once)
    monkeypatch.setattr(export_network, "write_onnx", write_once)


@pytest.fixture(scope="module")
def segmenter(crf_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A MobileNetV3 of one block of each kind, to trace and write fewer of the same."""
    out = tmp_path_factory.mktemp("export")
    flags = ["--head", "lraspp", "--image-size", "48", "64", "--max-steps", "4"]
    rows, hidden = mobilenet_v3.VARIANTS["mobilenet_v3_small"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(mobilenet_v3.VARIANTS, "mobilenet_v3_small", ((*rows[:4], rows[8]), hidden))
        assert run(crf_arguments(crf_folder, out, "--name", "seg", *flags)) == 0
        yield out / "seg"


@pytest.fixture(scope="module")
def small_segmenter(crf_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that is exported in a fifth of the time."""
    out = tmp_path_factory.mktemp("export")
    assert run(crf_arguments(crf_folder, out, "--name", "small", "--backbone", "lenet5", "--epochs", "4")) == 0
    return out / "small"


@pytest.mark.parametrize(
    ("form", "name"), [("torch_export", "export.pt2"), ("onnx", "export.onnx"), ("openvino", "export.xml")]
)
def test_a_file_computes_what_the_network_computes(segmenter: Path, form: str, name: str) -> None:
    assert export([str(segmenter), "--to", form]) == 0
    compute = runner(form, segmenter / name)
    network = load(segmenter, "cpu")
    for size in SIZES:
        images = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
        expected = [torch.softmax(network.logits(image), 1)[0].numpy() for image in images]
        exported = compute(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        assert np.abs(exported - np.stack(expected)).max() <= 1e-4, size
    assert not list(segmenter.glob("*.part*"))


def test_the_file_says_what_it_takes_and_gives(small_segmenter: Path) -> None:
    out = small_segmenter / "labels.onnx"
    assert export([str(small_segmenter), "--output", "labels", "--out", str(out)]) == 0
    session = onnxruntime.InferenceSession(str(out))
    about = json.loads(session.get_modelmeta().custom_metadata_map["graft"])
    assert about["classes"] == ["0", "1"]
    assert (about["size_rule"], about["size"], about["smallest_side"]) == ("stretch", [32, 40], 16)
    (labels,) = session.run(None, {session.get_inputs()[0].name: np.zeros((1, 3, 33, 47), np.uint8)})
    assert (labels.shape, labels.dtype) == ((1, 33, 47), np.int64)


def with_other_weights(model: onnx.ModelProto) -> None:
    """Every number stays finite."""
    for one in model.graph.initializer:
        if one.data_type == onnx.TensorProto.FLOAT and one.raw_data:
            weights = np.frombuffer(one.raw_data, np.float32).copy()
            weights[::2] *= -1
            one.raw_data = weights.tobytes()


def with_swapped_classes(model: onnx.ModelProto) -> None:
    graph, name = model.graph, model.graph.output[0].name
    for node in graph.node:
        node.output[:] = ["ours" if one == name else one for one in node.output]
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, 0]), "order"))
    graph.node.append(onnx.helper.make_node("Gather", ["ours", "order"], [name], axis=1))


def with_another_mean(model: onnx.ModelProto) -> None:
    (shift,) = (one for one in model.graph.initializer if one.name.endswith("shift"))
    shift.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(shift) + np.float32(5), shift.name))


@pytest.mark.parametrize("damage", [with_other_weights, with_swapped_classes, with_another_mean])
def test_a_damaged_file_is_refused(
    small_segmenter: Path, damage: Callable[[onnx.ModelProto], None], monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """It runs at every size: only the comparison can notice."""
    write = export_network.write_onnx

    def damaged(program, path: Path, metadata: str) -> None:
        write(program, path, metadata)
        model = onnx.load(str(path))
        damage(model)
        onnx.save(model, str(path))

    monkeypatch.setattr(export_network, "write_onnx", damaged)
    before = set(small_segmenter.iterdir())
    assert export([str(small_segmenter), "--out", str(small_segmenter / "damaged.onnx")]) == 1
    assert "export.py: refused: miou" in capsys.readouterr().err
    assert set(small_segmenter.iterdir()) == before


def test_the_readmes_program_runs_a_file_without_this_framework(small_segmenter: Path, tmp_path: Path) -> None:
    """Word for word, where neither torch nor any package of this project can be imported."""
    assert export([str(small_segmenter), "--out", str(tmp_path / "net.onnx"), "--images", "1"]) == 0
    smooth = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    picture = Image.fromarray(smooth).resize((90, 61), Image.Resampling.BICUBIC)
    picture.save(tmp_path / "street.png")
    text = (PROJECT / "experiments" / "README.md").read_text(encoding="utf-8")
    program = text.split("Without this framework, a file runs like this")[1].split("```python\n")[1].split("```")[0]
    assert program.count("\n") <= 30
    for theirs, ours in (
        ("runs/a/export.onnx", "net.onnx"),
        ("street.png", "labels.png"),
        ("street.jpg", "street.png"),
    ):
        assert theirs in program
        program = program.replace(theirs, ours)
    hidden = f"import sys; sys.modules.update(dict.fromkeys({[*PACKAGES, 'torch', 'cv2']}))\n"
    done = subprocess.run([sys.executable, "-I", "-c", hidden + program], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "['0', '1']\n"
    labels, network = Image.open(tmp_path / "labels.png"), load(small_segmenter, "cpu")
    assert (labels.mode, labels.size) == ("P", (90, 61))
    assert labels.getpalette()[:6] == network.colours.ravel().tolist()
    expected = network(tmp_path / "street.png").labels
    assert 0 < expected.mean() < 1
    assert (np.array(labels) == expected).mean() > 0.95  # Pillow does not resize as OpenCV does


def test_int8_is_judged_by_its_score(small_segmenter: Path, capsys) -> None:
    out = small_segmenter / "int8.onnx"
    command = [str(small_segmenter), "--int8", "--calibration", "4", "--out", str(out)]
    assert export([*command, "--max-drop", "1"]) == 0
    types = {node.op_type for node in onnx.load(str(out)).graph.node}
    assert "QuantizeLinear" in types
    assert "largest difference of a probability" in capsys.readouterr().out


def test_a_classifier_is_exported(tmp_path: Path) -> None:
    flags = ["--backbone", "lenet5", "--head", "classifier", "--epochs", "1", "--max-steps", "3", "--workers", "0"]
    assert run([*flags, "--accelerator", "cpu", "--out", str(tmp_path), "--name", "cls"]) == 0
    assert export([str(tmp_path / "cls"), "--images", "20"]) == 0
    compute, network = runner("onnx", tmp_path / "cls" / "export.onnx"), load(tmp_path / "cls", "cpu")
    for size in ((32, 32), (33, 57)):
        image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
        probabilities = compute(np.ascontiguousarray(image.transpose(2, 0, 1)[None]))
        assert np.abs(probabilities - torch.softmax(network.logits(image), 1).numpy()).max() <= 1e-4


def test_mistakes_are_answered_in_one_line(small_segmenter: Path, tmp_path: Path, capsys) -> None:
    for arguments, message in (
        ([str(tmp_path / "nothing")], "no such run folder or checkpoint"),
        ([str(small_segmenter), "--to", "openvino", "--int8"], "--int8 is for --to onnx only"),
        ([str(small_segmenter / "checkpoints" / "best.ckpt")], "--out: name the file to write"),
    ):
        with pytest.raises(SystemExit) as stop:
            export(arguments)
        assert stop.value.code == 2
        assert message in capsys.readouterr().err
