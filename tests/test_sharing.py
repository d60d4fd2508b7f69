"""share.py: two files that load() reads, a card from the run, the upload; and no program runs code of a checkpoint."""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from experiments.command_line.run_config import RunConfig, build_parser, settings_from
from experiments.inference.model_card import cell
from experiments.inference.trained import load
from experiments.run import main as run
from experiments.run_files.run_command import command
from experiments.share import main as share
from tests.conftest import crf_arguments
from tests.warm_process import run_python

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = {path.stem for path in (ROOT / "experiments").glob("*.py")} - {"__init__"}


@pytest.fixture(scope="module")
def shared(crf_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shared") / "files"
    assert share([str(crf_run), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("classifier")
    flags = ["--backbone", "lenet5", "--head", "classifier", "--epochs", "1", "--max-steps", "3", "--workers", "0"]
    assert run([*flags, "--accelerator", "cpu", "--out", str(out), "--name", "cls"]) == 0
    assert share([str(out / "cls")]) == 0
    return out / "cls"


# ---- two files


def test_the_shared_network_predicts_the_same_bits(crf_run: Path, shared: Path, classifier: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (45, 71, 3), np.uint8)
    for one, other in ((crf_run, shared), (crf_run, shared / "model.safetensors"), (classifier, classifier / "share")):
        before, after = load(one, "cpu"), load(other, "cpu")
        np.testing.assert_array_equal(before(image).probabilities, after(image).probabilities)
        assert (before.class_names, before.size_rule, before.mean, before.std, before.white, before.min_side) == (
            after.class_names, after.size_rule, after.mean, after.std, after.white, after.min_side
        )  # fmt: skip
        np.testing.assert_array_equal(before.colours, after.colours)
        assert before.temperature == after.temperature


def test_programs_take_it_in_the_place_of_a_run(shared: Path, crf_folder: Path, tmp_path: Path, capsys) -> None:
    from experiments.evaluate import main as evaluate
    from experiments.predict import main as predict

    picture = str(next((crf_folder / "val" / "images").iterdir()))
    assert predict([str(shared), picture, "--out", str(tmp_path / "out")]) == 0
    assert evaluate([str(shared), "--out", str(tmp_path / "eval")]) == 2
    assert "name the data set with --data" in capsys.readouterr().err
    data = ["--data", "folders", "--data-dir", str(crf_folder)]
    assert evaluate([str(shared), "--out", str(tmp_path / "eval"), *data]) == 0


def test_config_json_is_strict(shared: Path, tmp_path: Path) -> None:
    content = json.loads((shared / "config.json").read_text())
    assert content["class_names"] == ["0", "1"]
    assert content["module"]["backbone"] == "mobilenet_v3_small"
    assert {"size_rule", "size", "mean", "std", "colours"} <= content["preprocessing"].keys()
    copy = tmp_path / "copy"
    shutil.copytree(shared, copy)
    odd = content | {"module": content["module"] | {"colour_of_the_sky": "blue"}}
    for text, message in (
        (json.dumps(content | {"lr": float("nan")}), "is no JSON .it holds NaN"),
        ("{", "is no JSON"),
        ("[]", "describes no network of Graft"),
        (json.dumps(content | {"format": 2}), "has format 2, this version reads 1"),
        (json.dumps({**content, "preprocessing": None}), "lacks preprocessing"),
        (json.dumps(content | {"temperature": 0}), "has the temperature 0; it is a number above 0"),
        (json.dumps(odd), "has colour_of_the_sky, which this version .* does not know"),
        (json.dumps(content | {"class_names": ["a", "b", "c"]}), "does not hold the tensors of config.json"),
    ):
        (copy / "config.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            load(copy)
    (copy / "config.json").unlink()
    with pytest.raises(ValueError, match="has no config.json beside it"):
        load(copy)
    shutil.copy(shared / "config.json", copy)
    (copy / "model.safetensors").write_bytes((shared / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(ValueError, match="does not hold the tensors of config.json"):
        load(copy)


def test_an_edited_card_is_kept_and_another_network_refused(
    shared: Path, crf_run: Path, classifier: Path, tmp_path: Path, capsys
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(shared, copy)
    (copy / "README.md").write_text("license: mit\n")
    assert share([str(crf_run), "--out", str(copy)]) == 0
    assert (copy / "README.md").read_text() == "license: mit\n"
    assert "is kept as it is" in capsys.readouterr().out
    assert share([str(classifier), "--out", str(copy)]) == 2
    assert "holds another network" in capsys.readouterr().err
    assert not list(copy.glob("*.part"))


# ---- the card


def test_the_card_tells_what_the_run_recorded(shared: Path, crf_run: Path, crf_folder: Path) -> None:
    card = (shared / "README.md").read_text()
    results = json.loads((crf_run / "results.json").read_text())
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["pipeline_tag"] == "image-segmentation"
    assert "license" not in head
    for row in (
        f"| mIoU | {results['scores']['val']['miou']:.4f} | {results['scores']['val_crf']['miou']:.4f} |",
        f"| 1 | 1 | #{bytes(load(crf_run).colours[1]).hex()} | {results['scores']['val']['iou/1']:.4f} |",
        results["protocol"]["data_fingerprint"],
        "8 train, 5 val images",
        f"torch {torch.__version__}",
        "Licence: left to the author",
        "![Loss and score during training](curves.png)",
        "--backbone mobilenet_v3_small --head unet",
    ):
        assert row in card
    assert str(crf_folder) not in card
    for picture in re.findall(r"!\[.*\]\((.*)\)", card):
        assert (shared / picture).stat().st_size > 1000


def test_a_classifiers_card(classifier: Path) -> None:
    card = (classifier / "share" / "README.md").read_text()
    assert "pipeline_tag: image-classification" in card
    assert "| top-1 |" in card
    assert "result.top(5)" in card


def test_its_example_runs(shared: Path, tmp_path: Path) -> None:
    from PIL import Image

    (code,) = re.findall(r"```python\n(.*?)```", (shared / "README.md").read_text(), re.S)
    Image.new("RGB", (40, 32)).save(tmp_path / "street.jpg")
    code = code.replace('"FOLDER"', repr(str(shared))).replace('"street', f'"{tmp_path}/street')
    exec(compile(code, "card", "exec"), {})
    assert (tmp_path / "street.png").is_file()


def test_its_command_gives_the_settings() -> None:
    settings = {
        "backbone": "resnet18", "head": "unet", "data": "folders", "data_dir": "/home/me/secret", "lr": 0.003,
        "image_size": [32, 40], "head_options": {"up": "interpolate"}, "epochs": 3, "name": "mine", "workers": 7,
        "deterministic": True, "weights": "/home/me/w.safetensors",
    }  # fmt: skip
    line = command(settings)
    assert "/home/me" not in line
    import shlex

    parser = build_parser()
    config = settings_from(parser.parse_args(shlex.split(line)[2:]), RunConfig)
    for name, value in settings.items():
        if name not in ("name", "workers", "data_dir", "weights"):
            assert getattr(config, name) == value, name
    assert (config.data_dir, config.weights) == ("DIR", "w.safetensors")


def test_a_class_name_cannot_change_the_table() -> None:
    assert cell("a|b <i>\n#c") == r"a\|b \<i\> \#c"


# ---- the hub


class Hub(BaseHTTPRequestHandler):
    """What the Hugging Face hub answers to an upload; `server.files` gets what arrives, `server.asked` the paths."""

    server: Any

    def log_message(self, *_: Any) -> None:
        pass

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def answer(self, content: Any, status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def address(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server.server_port}{path}"

    def do_POST(self) -> None:
        body = self.body()
        self.server.asked.append(self.path)
        if self.headers.get("Authorization") != "Bearer hf_right":
            self.answer({"error": "Invalid username or password."}, 401)
        elif self.path.endswith("/repos/create"):
            given = json.loads(body)  # the key depends on the version of huggingface_hub
            self.server.private = given.get("private") or given.get("visibility") == "private"
            self.answer({"url": self.address("/me/net"), "id": "me/net", "name": "me/net"})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            mode = {True: "lfs", False: "regular"}
            self.answer({"files": [{"path": f["path"], "uploadMode": mode[f["path"].endswith("tensors")],
                                    "shouldIgnore": False} for f in files]})  # fmt: skip
        elif self.path.endswith("/objects/batch"):
            objects = json.loads(body)["objects"]
            self.answer({"transfer": "basic", "objects": [
                one | {"actions": {"upload": {"href": self.address(f"/lfs/{one['oid']}"), "header": {}}}}
                for one in objects]})  # fmt: skip
        elif "/commit/" in self.path:
            for line in body.decode().splitlines():
                value = json.loads(line)["value"]
                if "content" in value:
                    self.server.files[value["path"]] = base64.b64decode(value["content"])
                elif "oid" in value:
                    self.server.files[value["path"]] = self.server.files.pop(value["oid"])
            self.answer({"commitUrl": self.address("/me/net/commit/1"), "commitOid": "1" * 40})
        else:
            self.answer({"errors": [], "warnings": []})

    def do_PUT(self) -> None:
        body = self.body()
        oid = self.path.rpartition("/")[2]
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.files[oid] = body
        self.answer({})

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.answer({"id": "me/net", "sha": "0" * 40, "siblings": [], "private": False, "tags": []})


@pytest.fixture
def hub() -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked, server.files, server.private = [], {}, None
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


SHARE = """
import sys
for name in [name for name in sys.modules if name.split(".")[0] == "huggingface_hub"]:
    del sys.modules[name]  # it reads its environment when it is imported
from experiments.share import main
sys.exit(main(sys.argv[1:]))
"""


def push(hub: Any, folder: Path, out: Path, *more: str, token: str = "hf_right") -> subprocess.CompletedProcess:
    pytest.importorskip("huggingface_hub", reason='no huggingface_hub: pip install -e ".[hub]"')
    environment = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(out.parent / "home"), "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip
    return run_python(["-c", SHARE, str(folder), "--out", str(out), "--push-to-hub", "me/net", *more], env=environment)


def test_an_upload_arrives_whole(hub: Any, crf_run: Path, tmp_path: Path) -> None:
    done = push(hub, crf_run, tmp_path / "out", "--private")
    assert done.returncode == 0, done.stderr
    assert "/me/net" in done.stdout.splitlines()[-1]
    assert hub.private is True
    here = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert hub.files == here
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for name, content in hub.files.items():
        (snapshot / name).write_bytes(content)
    assert load(snapshot).class_names == ("0", "1")


def test_a_refused_upload_is_one_line_and_keeps_the_files(hub: Any, crf_run: Path, tmp_path: Path) -> None:
    done = push(hub, crf_run, tmp_path / "out", token="hf_wrong")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("share.py: error: --push-to-hub me/net: http://127.0.0.1")
    assert "401" in line
    assert "hf auth login" in line
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_without_a_server_it_is_one_line(hub: Any, crf_run: Path, tmp_path: Path) -> None:
    hub.server_close()
    done = push(hub, crf_run, tmp_path / "out")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "cannot be reached" in done.stderr


def test_what_cannot_be_shared_is_refused(crf_run: Path, tmp_path: Path, capsys) -> None:
    for arguments, message in (
        ([str(tmp_path / "nothing")], "no such folder"),
        ([str(tmp_path)], "has no config.yaml"),
        ([str(crf_run), "--push-to-hub", "net"], "give USER/NAME"),
        ([str(crf_run), "--private"], "--private is for --push-to-hub"),
    ):
        with pytest.raises(SystemExit):
            share(arguments)
        assert message in capsys.readouterr().err


# ---- code in a checkpoint


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.fixture
def evil(crf_run: Path, tmp_path: Path) -> Path:
    """A run folder whose checkpoints hold code; the file `ran` beside it would show that it was run."""
    folder = tmp_path / "runs" / "one"
    shutil.copytree(crf_run, folder)
    for name in ("best.ckpt", "last.ckpt"):
        state = torch.load(folder / "checkpoints" / name, weights_only=True)
        torch.save(state | {"hyper_parameters": {"head": Evil(tmp_path / "ran")}}, folder / "checkpoints" / name)
    return folder


LOADERS = {
    "benchmark": ["EVIL"],
    "demo": ["EVIL"],
    "evaluate": ["EVIL"],
    "evaluate --against": ["GOOD", "--out", "OUT", "--against", "EVIL"],
    "explain": ["EVIL", "PICTURE", "--out", "OUT"],
    "export": ["EVIL", "--to", "torch_export"],
    "predict": ["EVIL", "PICTURE", "--out", "OUT"],
    "rcnn": ["--run", "EVIL", "--out", "OUT"],
    "run --resume": ["TRAIN", "--epochs", "3", "--out", "EVIL/..", "--name", "one", "--resume", "--crf", "test"],
    "run --start-from": ["TRAIN", "--out", "OUT", "--start-from", "EVIL/checkpoints/best.ckpt"],
    "run --weights": ["TRAIN", "--out", "OUT", "--weights", "EVIL/checkpoints/best.ckpt"],
    "share": ["EVIL"],
    "trimap": ["EVIL"],
    "tune_crf": ["EVIL", "--processes", "1"],
}
"""The programs that load checkpoints, and their arguments; words in capitals are replaced."""
LOAD_NONE = {
    "catalogue",
    "claims",
    "compare",
    "fidelity",
    "grid",
    "propose",
    "report",
    "show_data",
    "submit",
    "tune",
    "zoo",
}


@pytest.mark.parametrize("case", [case for case in LOADERS if case.split()[0] in PROGRAMS])
def test_no_program_runs_code_of_a_checkpoint(
    case: str, evil: Path, crf_run: Path, crf_folder: Path, tmp_path: Path, capsys
) -> None:
    program = case.split()[0]
    if program == "demo":
        pytest.importorskip("gradio", reason='no gradio: pip install -e ".[test]"')
    values = {
        "EVIL": str(evil), "GOOD": str(crf_run), "OUT": str(tmp_path / "out"),
        "PICTURE": str(crf_folder / "val" / "images" / "0.png"),
    }  # fmt: skip
    arguments = []
    for word in LOADERS[case]:
        for name, value in values.items():
            word = word.replace(name, value)
        arguments += crf_arguments(crf_folder, tmp_path / "out") if word == "TRAIN" else [word]
    module = __import__(f"experiments.{program}", fromlist=["main"])
    try:
        code = module.main(arguments)
    except SystemExit as end:
        code = end.code
    error = capsys.readouterr().err
    assert not (tmp_path / "ran").exists(), "code in the checkpoint was run"
    assert code in (1, 2)
    assert error.splitlines()[-1].startswith(f"{program}.py: error: ")
    assert "best.ckpt" in error or "last.ckpt" in error
    assert "Traceback" not in error


def test_every_program_is_known_to_load_checkpoints_or_not() -> None:
    assert {case.split()[0] for case in LOADERS} | LOAD_NONE >= PROGRAMS


def test_comparing_reads_no_checkpoint(evil: Path, tmp_path: Path) -> None:
    from experiments.compare import main as compare

    assert compare([str(evil.parent)]) == 0
    assert not (tmp_path / "ran").exists()
