"""demo.py: what the page says of a picture, and the page itself in a real browser, which talks to this machine only."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from experiments.demo import main, port_problem
from experiments.inference.demo_page import LEAST_SHOWN, Answers, bars
from experiments.inference.protocol import Predictor, Protocol
from experiments.inference.trained import load
from heads.crf import CRFSettings
from tests.test_inference import network_of

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
browser_test = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")
PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
def note(event, args):
    if event == "socket.connect" and isinstance(args[1], tuple) and args[1][0] not in ("127.0.0.1", "localhost", "::1"):
        print("CONNECTS TO", args[1], file=sys.stderr, flush=True)
sys.addaudithook(note)
from experiments.demo import main
sys.exit(main(sys.argv[1:]))
"""
"""demo.py, which tells of every connection that it opens to another machine."""


@pytest.fixture(scope="module")
def served(crf_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The program in a process of its own; `page` is its page in a browser, with every request in `page.asked`."""
    pytest.importorskip("gradio", reason='no gradio: pip install -e ".[test]"')
    sync_api = pytest.importorskip("playwright.sync_api", reason='no playwright: pip install -e ".[test]"')
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    temporary = tmp_path_factory.mktemp("uploads")
    command = [sys.executable, "-c", PROGRAM, str(crf_run), "--port", str(port), "--max-megabytes", "1"]
    process = subprocess.Popen(
        [*command, "--device", "cpu"], cwd=ROOT, env=os.environ | {"TMPDIR": str(temporary)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        line = process.stdout.readline()
        assert line.startswith(f"open http://127.0.0.1:{port}"), process.communicate()
        with sync_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.set_default_timeout(120_000)
            page.asked = []
            page.on("request", lambda request: page.asked.append(request.url))
            page.goto(f"http://127.0.0.1:{port}")
            page.wait_for_selector("input[type=file]", state="attached")
            page.process, page.port, page.temporary = process, port, temporary
            yield page
            browser.close()
    finally:
        process.kill()
        process.wait()


def upload(page: Any, path: Path) -> None:
    page.set_input_files("input[type=file]", path)


@browser_test
def test_the_page_labels_a_picture(served: Any, crf_folder: Path) -> None:
    page = served
    upload(page, crf_folder / "val" / "images" / "0.png")
    page.wait_for_selector(".bars")
    assert "40 x 32 pixels, mean confidence" in page.inner_text("body")
    shares = [float(text.split()[0]) for text in page.locator(".bars .value").all_inner_texts()]
    assert sum(shares) == pytest.approx(100, abs=0.2)
    source = page.locator("img").last.get_attribute("src")
    page.get_by_role("spinbutton").fill("1")
    page.get_by_role("spinbutton").press("Enter")
    page.wait_for_function("document.querySelector('.bars').innerText.includes('no label')")
    assert page.locator(".bars .value").all_inner_texts() == ["100.0 %"]
    page.wait_for_function(f"document.querySelectorAll('img')[1].src != {source!r}")
    page.get_by_role("spinbutton").fill("0")
    page.get_by_role("spinbutton").press("Enter")
    page.wait_for_function("!document.querySelector('.bars').innerText.includes('no label')")
    page.get_by_role("checkbox").check()
    page.wait_for_function("document.querySelectorAll('.bars .value').length > 0")


@browser_test
def test_what_is_no_picture_is_said_in_one_line(served: Any, tmp_path: Path) -> None:
    page = served
    page.reload()
    page.wait_for_selector("input[type=file]", state="attached")
    (tmp_path / "half.png").write_bytes(b"\x89PNG\r\n\x1a\nhalf")
    upload(page, tmp_path / "half.png")
    said = page.locator(".toast-body").first.inner_text()
    assert "Traceback" not in said
    page.reload()
    page.wait_for_selector("input[type=file]", state="attached")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (900, 900, 3), np.uint8)).save(tmp_path / "large.png")
    upload(page, tmp_path / "large.png")  # 2.4 MB
    assert "exceed" in page.locator(".toast-body").first.inner_text().lower()


@browser_test
def test_it_talks_to_this_machine_only(served: Any) -> None:
    own = (f"http://127.0.0.1:{served.port}", "data:", "blob:")
    assert [url for url in served.asked if not url.startswith(own)] == []
    if Path("/proc/net/tcp").is_file():
        listening = re.findall(rf"\d+: (\w+):{served.port:04X} 0+:0000 0A", Path("/proc/net/tcp").read_text())
        assert listening == ["0100007F"]
        assert f":{served.port:04X} " not in Path("/proc/net/tcp6").read_text()


@browser_test
def test_ctrl_c_ends_it_without_a_trace(served: Any) -> None:
    assert any(served.temporary.iterdir())
    served.process.send_signal(signal.SIGINT)
    out, error = served.process.communicate(timeout=200)
    assert served.process.returncode == 0
    assert out.splitlines()[-1] == "demo.py: the page is closed"
    assert "CONNECTS TO" not in error
    assert "Traceback" not in error
    assert not any(served.temporary.iterdir())


# ---- without a browser


@pytest.fixture(scope="module")
def answers(crf_run: Path) -> Answers:
    network = load(crf_run, "cpu")
    return Answers(Predictor(network, Protocol()), Predictor(network, Protocol(crf=CRFSettings())), 100)


def test_an_answer_equals_predict(answers: Answers, crf_folder: Path) -> None:
    path = str(crf_folder / "val" / "images" / "0.png")
    picture, table, line = answers(path, 0.0)
    result = answers.plain.network(path)
    for name, share in result.shares.items():
        assert f"<span>{name}</span>" in table
        assert f"{100 * share:.1f} %" in table
    assert line.startswith("40 x 32 pixels, mean confidence")
    assert max(picture.size) >= LEAST_SHOWN
    assert "no label" in answers(path, 1.0)[1]
    assert answers.predict.cache_info().misses == 1  # another confidence needs no new prediction
    answers(path, 0.0, crf=True)
    assert answers.predict.cache_info().misses == 2
    assert answers(None, 0.5) == (None, "", "")


def test_large_pictures_are_reduced_and_huge_ones_refused(answers: Answers, tmp_path: Path, monkeypatch) -> None:
    Image.new("RGB", (300, 150)).save(tmp_path / "large.png")
    assert "100 x 50 pixels (reduced from 300 x 150" in answers(str(tmp_path / "large.png"), 0)[2]
    (tmp_path / "half.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"^half\.jpg cannot be read"):
        answers(str(tmp_path / "half.jpg"), 0)
    monkeypatch.setattr("experiments.inference.demo_page.MOST_MEGAPIXELS", 0.04)
    Image.new("RGB", (300, 150)).save(tmp_path / "huge.png")
    with pytest.raises(ValueError, match=r"^huge\.png has 0 megapixels"):
        answers(str(tmp_path / "huge.png"), 0)


def test_a_classifier_gets_bars(tmp_path: Path) -> None:
    from lightning_modules.classification import ClassificationModule
    from tests.conftest import randomise

    network = network_of("lenet5", "unet")
    names = tuple(f"class {i}" for i in range(12))
    module = randomise(ClassificationModule("lenet5", "classifier", names)).eval().requires_grad_(False)
    from dataclasses import replace

    from datamodules.size_rules import SizeRule

    network = replace(network, module=module, class_names=names, size_rule=SizeRule("stretch", (32, 32)))
    answers = Answers(Predictor(network, Protocol()), None, 100)
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    _, table, _ = answers(str(tmp_path / "a.png"), 0.0)
    values = [float(one) for one in re.findall(r"([\d.]+) %</span>", table)]
    assert len(values) == 8
    assert values == sorted(values, reverse=True)
    assert "no label: below the confidence" in answers(str(tmp_path / "a.png"), 1.0)[1]


def test_names_cannot_hold_markup() -> None:
    assert "<script>" not in bars([("<script>alert(1)</script>", 0.5, (1, 2, 3))])


def test_a_port_in_use_is_said(crf_run: Path, capsys) -> None:
    pytest.importorskip("gradio", reason='no gradio: pip install -e ".[test]"')
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit):
            main([str(crf_run), "--port", str(port)])
    assert f"--port {port}: address already in use; give another one" in capsys.readouterr().err
    assert "largest port" in str(port_problem(70_000))
