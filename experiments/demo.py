"""Try a trained network in the browser: `python experiments/demo.py runs/a`; then open http://127.0.0.1:7860.

Pictures come from a file, the clipboard or a camera. The page shows the labels over the picture, the share of each
class, the most likely classes or the objects found, and what remains above a confidence. Only this machine can open it.
"""

import gc
import importlib.util
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # started as a file: import this checkout, not an installed copy, and not this folder's files
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from experiments.command_line.crf_settings import DEFAULT, crf_settings_problem
from experiments.command_line.kinds import PositiveInt
from experiments.command_line.parser import Parser, flag, positional, settings_from
from experiments.command_line.process import run_program
from experiments.command_line.protocol_flags import run_problem


@dataclass
class DemoConfig:
    """The order of the fields is the order of `--help`."""

    run: str = positional("run folder, a checkpoint of one, or a folder that share.py wrote", path=True)
    port: PositiveInt = flag(7860, "port of the page on 127.0.0.1", group="page")
    max_megabytes: PositiveInt = flag(20, "largest file that may be uploaded", group="page")
    max_side: PositiveInt = flag(
        1600, "longer side in pixels that larger pictures are reduced to, to save time", group="page"
    )
    crf_settings: str = flag(
        DEFAULT, "settings of the CRF that can be switched on: a preset of heads/crf.py or a YAML file", path=True,
        group="network",
    )  # fmt: skip
    device: str = flag("auto", "where the network runs: auto, cpu, cuda, cuda:1, mps", group="network")


def main(arguments: list[str] | None = None) -> int:
    """Parse first and import torch after. Returns the exit code."""
    parser = Parser("demo.py", "Try a trained network in the browser.")
    parser.add_settings(DemoConfig)
    config = settings_from(parser.parse_args(arguments), DemoConfig)
    problem = usage_problem(config)
    if problem:
        parser.error(problem)
    return run_program("demo.py", lambda: demo(config), "nothing is kept")


def usage_problem(config: DemoConfig) -> str | None:
    """What can be known to be wrong before torch is imported."""
    if importlib.util.find_spec("gradio") is None:
        return "the page needs gradio; pip install 'graft[demo]'"
    return run_problem(config.run) or crf_settings_problem(config.crf_settings) or port_problem(config.port)


def port_problem(port: int) -> str | None:
    """Why a port cannot be listened on."""
    if port > 65_535:
        return f"--port {port}: the largest port is 65535"
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("127.0.0.1", port))
        except OSError as error:
            return f"--port {port}: {error.strerror.lower() if error.strerror else error}; give another one"
    return None


def demo(config: DemoConfig) -> int:
    from experiments.command_line.crf_settings import read_crf_settings
    from experiments.inference.demo_boxes import BoxAnswers
    from experiments.inference.demo_page import Answers, serve
    from experiments.inference.protocol import Predictor, Protocol, device_of
    from experiments.inference.trained import load_any

    network = load_any(config.run, device_of(config.device))
    refined = None
    if network.task == "segmentation" and network.in_channels == 3:
        refined = Predictor(network, Protocol(crf=read_crf_settings(config.crf_settings)))
    answers: Answers | BoxAnswers
    if network.task == "detection":
        answers = BoxAnswers(network, config.max_side)
    else:
        answers = Answers(Predictor(network, Protocol()), refined, config.max_side)
    hparams = network.module.hparams
    title = f"{hparams['backbone']} + {hparams['head']}: {network.task}, {len(network.class_names)} classes"

    def ready(address: str) -> None:
        print(f"open {address} in a browser of this machine; Ctrl-C ends it", flush=True)

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # uploads are removed after a kill, too
    try:
        serve(answers, title, config.port, config.max_megabytes, ready)
    except KeyboardInterrupt:
        print("demo.py: the page is closed", flush=True)
    gc.freeze()  # Python would search everything for garbage before it ends, which takes seconds
    return 0


if __name__ == "__main__":
    sys.exit(main())
