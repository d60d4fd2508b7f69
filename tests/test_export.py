"""export.py: files that compute what the network computes, at any size, and refusal of those that do not."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from experiments.export import main as export
from experiments.inference.export_network import runner
from experiments.inference.trained import load
from experiments.run import main as run
from tests.conftest import crf_arguments

SIZES = ((48, 64), (33, 47), (64, 96), (71, 65))


@pytest.fixture(scope="module")
def segmenter(crf_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export")
    assert run(crf_arguments(crf_folder, out, "--name", "seg", "--image-size", "48", "64")) == 0
    return out / "seg"


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


def test_the_file_says_what_it_takes_and_gives(segmenter: Path) -> None:
    out = segmenter / "labels.onnx"
    assert export([str(segmenter), "--output", "labels", "--out", str(out)]) == 0
    session = onnxruntime.InferenceSession(str(out))
    about = json.loads(session.get_modelmeta().custom_metadata_map["graft"])
    assert about["classes"] == ["0", "1"]
    assert (about["size_rule"], about["size"]) == ("stretch", [48, 64])
    (labels,) = session.run(None, {session.get_inputs()[0].name: np.zeros((1, 3, 33, 47), np.uint8)})
    assert (labels.shape, labels.dtype) == ((1, 33, 47), np.int64)


def test_a_damaged_file_is_refused(segmenter: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Every number in it is finite and every size works: only the comparison can notice."""
    from experiments.inference import export_network

    write = export_network.write_onnx

    def damaged(program, path: Path, metadata: str) -> None:
        write(program, path, metadata)
        model = onnx.load(str(path))
        for one in model.graph.initializer:
            if one.data_type == onnx.TensorProto.FLOAT and one.raw_data:
                weights = np.frombuffer(one.raw_data, np.float32).copy()
                weights[::2] *= -1
                one.raw_data = weights.tobytes()
        onnx.save(model, str(path))

    monkeypatch.setattr(export_network, "write_onnx", damaged)
    out = segmenter / "damaged.onnx"
    assert export([str(segmenter), "--out", str(out)]) == 1
    assert "export.py: refused: miou" in capsys.readouterr().err
    assert not out.exists()
    assert not list(segmenter.glob("*.part*"))


def test_int8_is_judged_by_its_score(segmenter: Path, capsys) -> None:
    out = segmenter / "int8.onnx"
    command = [str(segmenter), "--int8", "--calibration", "4", "--out", str(out)]
    assert export([*command, "--max-drop", "1"]) == 0
    types = {node.op_type for node in onnx.load(str(out)).graph.node}
    assert "QuantizeLinear" in types
    assert "largest difference of a probability" in capsys.readouterr().out


def test_a_classifier_is_exported(tmp_path: Path) -> None:
    flags = ["--backbone", "lenet5", "--head", "classifier", "--epochs", "1", "--max-steps", "3", "--workers", "0"]
    assert run([*flags, "--accelerator", "cpu", "--out", str(tmp_path), "--name", "cls"]) == 0
    assert export([str(tmp_path / "cls"), "--images", "20"]) == 0
    probabilities = runner("onnx", tmp_path / "cls" / "export.onnx")(np.zeros((3, 3, 32, 32), np.uint8))
    assert probabilities.shape == (3, 10)


def test_mistakes_are_answered_in_one_line(segmenter: Path, tmp_path: Path, capsys) -> None:
    for arguments, message in (
        ([str(tmp_path / "nothing")], "no such run folder or checkpoint"),
        ([str(segmenter), "--to", "openvino", "--int8"], "--int8 is for --to onnx only"),
        ([str(segmenter / "checkpoints" / "best.ckpt")], "--out: name the file to write"),
    ):
        with pytest.raises(SystemExit) as stop:
            export(arguments)
        assert stop.value.code == 2
        assert message in capsys.readouterr().err
