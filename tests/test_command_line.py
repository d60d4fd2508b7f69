"""Flags, YAML files and sweeps: lists, paths with ~, names, and a help whose lines can be read alone."""

import importlib
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments.command_line.console import make_console
from experiments.command_line.kinds import NonNegativeInt, PositiveFloat, kind_of
from experiments.command_line.parser import Parser, flag, settings_from
from experiments.command_line.progress import with_progress
from experiments.command_line.run_config import build_parser, parse, to_yaml
from experiments.command_line.run_flags import RunConfig

EXPERIMENTS = Path(__file__).resolve().parent.parent / "experiments"
PROGRAMS = sorted(path.stem for path in EXPERIMENTS.glob("*.py") if path.name != "__init__.py")


def from_yaml(tmp_path: Path, text: str, *more: str) -> RunConfig:
    path = tmp_path / "settings.yaml"
    path.write_text(text, encoding="utf-8")
    return parse(["--config", str(path), *more])[0]


LISTS: dict[str, tuple[str, list[Any]]] = {
    "image_size: 128": ("image_size", [128]),
    "image_size: 256 320": ("image_size", [256, 320]),
    "image_size: '[256, 320]'": ("image_size", [256, 320]),
    "image-size: [256, 320]": ("image_size", [256, 320]),
    "logger: csv": ("logger", ["csv"]),
    "logger: csv, tensorboard": ("logger", ["csv", "tensorboard"]),
    "wandb_tags: exp1\nlogger: wandb": ("wandb_tags", ["exp1"]),
    "wandb_tags: [two words, 2024]\nlogger: wandb": ("wandb_tags", ["two words", "2024"]),
    "--image-size=[256, 320]": ("image_size", [256, 320]),
    "--image-size=256 320": ("image_size", [256, 320]),
    "--image-size=256,320": ("image_size", [256, 320]),
    "--image-size|256|320": ("image_size", [256, 320]),
    "--image-size=64": ("image_size", [64]),
    "--logger=[wandb]": ("logger", ["wandb"]),
    "--logger|csv|wandb": ("logger", ["csv", "wandb"]),
    "--wandb-tags=two words|--logger=wandb": ("wandb_tags", ["two words"]),
    "--wandb-tags=[a b, c]|--logger=wandb": ("wandb_tags", ["a b", "c"]),
}


@pytest.mark.parametrize("given", LISTS)
def test_one_value_is_a_list_of_one_and_a_list_may_be_one_argument(given: str, tmp_path: Path) -> None:
    name, expected = LISTS[given]
    config = parse(given.split("|"))[0] if given.startswith("--") else from_yaml(tmp_path, given)
    assert getattr(config, name) == expected


MISTAKES = {
    "image_size: []": "--image-size in {path}: [] is not a whole number of at least 1",
    "image_size: [64, 0]": "--image-size in {path}: 0 is not a whole number of at least 1",
    "image_size: 64.5": "--image-size in {path}: 64.5 is not a whole number of at least 1",
    "logger: [paper]": "--logger in {path}: paper is not one of csv, wandb, tensorboard",
    "epochs: true": "--epochs in {path}: True is not a whole number of at least 0",
    "lr: .nan": "--lr in {path}: nan is not a number above 0",
    "lr: .inf": "--lr in {path}: inf is not a number above 0",
    "weights: null": "--weights in {path}: null is not text",
    "head_options: deep": "--head-options in {path}: deep is not settings in YAML such as '{{name: value}}'",
    "learning-rate: 1": "--config {path}: no setting 'learning-rate'; nearest: ",
    "- lr": "--config {path}: not a YAML file of settings; write lines such as lr: 0.01",
    "lr: [": "--config {path}: not a YAML file of settings (while parsing",
    "download: maybe": "--download in {path}: maybe is not true or false",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_mistakes_in_yaml_are_one_line(text: str, tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        from_yaml(tmp_path, text)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("run.py: error: " + MISTAKES[text].format(path=tmp_path / "settings.yaml"))


def test_the_command_line_wins_and_types_are_plain(tmp_path: Path) -> None:
    """Wherever it stands; numbers may be written as YAML 1.1 takes for text; a number for text is text."""
    path = tmp_path / "a.yaml"
    path.write_text("lr: 1e-3\ndevices: 2\nfreeze-backbone: yes\nepochs: '7'\n", encoding="utf-8")
    config, _ = parse(
        ["--lr", "0.5", "--config", str(path), "--download=False", "--data-dir=null", "--aux-weight=None"]
    )
    assert (config.lr, config.devices, config.freeze_backbone, config.epochs) == (0.5, "2", True, 7)
    assert (config.download, config.data_dir, config.aux_weight) == (False, None, None)
    assert {type(value) for value in vars(config).values()} <= {str, int, float, bool, list, type(None)}
    again = tmp_path / "again.yaml"
    again.write_text(to_yaml(config), encoding="utf-8")
    assert parse(["--config", str(again)])[0] == config


NOT_OF_TIMM = {
    "--data timm/x": "--data: no data 'timm/x'; nearest: ",
    "--schedule timm/x": "--schedule: no schedule 'timm/x'; nearest: ",
    "--head timm/resnet18": "--head: no head 'timm/resnet18'; nearest: ",
    "--loss cross_entropy+timm/dice": "--loss: no loss 'timm/dice'; nearest: dice",
    "--devices 0": "--devices: there must be at least 1",
    "--devices two": "--devices: 'two' is neither a number nor auto",
    "--scale-range 2": "--scale-range 2: give the smallest and the largest factor",
    "--scale-range 2 0.5": "--scale-range 2 0.5: give the smallest and the largest factor",
    "--image-size 1 2 3": "--image-size takes one number or two, height and width, not 3",
    "runs": "'runs' belongs to no flag",
}


@pytest.mark.parametrize("arguments", NOT_OF_TIMM)
def test_names_of_timm_are_those_of_backbones_alone(arguments: str, capsys) -> None:
    with pytest.raises(SystemExit):
        parse(arguments.split())
    assert f"run.py: error: {NOT_OF_TIMM[arguments]}" in capsys.readouterr().err
    assert parse(["--backbone", "timm/resnet18"])[0].backbone == "timm/resnet18"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for folder in ("data", "runs"):
        (tmp_path / folder).mkdir()
    for file in ("w.pth", "best.ckpt", "weights.txt", "a.yaml", "crf.yaml"):
        (tmp_path / file).write_text("w1: 4\n" if file == "crf.yaml" else "", encoding="utf-8")
    return tmp_path


PATHS = {
    "data_dir": "~/data", "weights": "~/w.pth", "start_from": "~/best.ckpt", "class_weights": "~/weights.txt",
    "augmentation": "~/a.yaml", "crf_settings": "~/crf.yaml", "proposals": "~/p.npz", "out": "~/runs",
}  # fmt: skip


def test_a_tilde_is_the_home_directory_in_every_path(home: Path) -> None:
    """In flags, which a shell expands after a space only, in YAML, and in the file of --config itself."""
    (home / "p.npz").touch()  # the only one that is looked for before training
    expected = {name: path.replace("~", str(home)) for name, path in PATHS.items()}
    flags = [f"--{name.replace('_', '-')}={path}" for name, path in PATHS.items()]
    config, _ = parse([*flags, "--crf=test"])
    assert {name: getattr(config, name) for name in PATHS} == expected
    (home / "settings.yaml").write_text(yaml.safe_dump({**PATHS, "crf": "test"}), encoding="utf-8")
    config, _ = parse(["--config=~/settings.yaml"])
    assert {name: getattr(config, name) for name in PATHS} == expected
    paths = {one.name for one in fields(RunConfig) if one.metadata["path"]}
    assert paths == set(PATHS)


def test_a_tilde_in_grids_jobs_and_comparisons(home: Path, capsys) -> None:
    from experiments import compare, grid, submit
    from tests.fake_runs import write_run

    assert grid.main(["--out=~/runs", "--print", "--vary", "weights=none,~/w.pth", "--", "--data-dir=~/data"]) == 0
    assert f"--out {home}/runs" in capsys.readouterr().out
    (home / "lines.txt").write_text("--name a --out '~/runs' --weights=~/w.pth\n", encoding="utf-8")
    assert submit.main(["--dry-run", "--array=~/lines.txt"]) == 0
    assert f"#SBATCH --output={home}/runs/lines.%a.log" in capsys.readouterr().out
    write_run(home / "runs" / "one", "resnet18", "unet", 0, 0.5)
    assert compare.main(["~/runs", "--csv=~/all.csv"]) == 0
    assert "resnet18 · unet" in (home / "all.csv").read_text(encoding="utf-8")


def helps(program: str) -> dict[str, str]:
    """The help of each flag and argument of a program."""
    with pytest.MonkeyPatch.context() as patched:
        made: list[Parser] = []
        parse_args = Parser.parse_args

        def noted(self: Parser, args: Any = None) -> Any:
            made.append(self)
            return parse_args(self, args)

        patched.setattr(Parser, "parse_args", noted)
        with pytest.raises(SystemExit):
            importlib.import_module(f"experiments.{program}").main(["--help"])
    return {action.dest: str(action.help) for action in made[0]._actions if action.dest != "help"}


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_line_of_help_can_be_read_alone(program: str, capsys) -> None:
    texts = helps(program)
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: {program}.py")
    for name, text in texts.items():
        assert len(text.split()) >= 2 or name == "optimizer", (name, text)
        assert not re.match(r"(of|what|how|whether|on|the same|as)\b(?! many)", text), (name, text)
        assert f"--{name.replace('_', '-')}" in shown or name.upper() in shown or name in shown


def test_defaults_are_shown_and_flags_stand_under_themes(capsys) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"])
    printed = capsys.readouterr().out
    titles = re.findall(r"^(\w[\w ]*):$", printed, re.MULTILINE)
    assert titles == ["options", "network", "data", "training", "hardware", "run folder", "logging"]
    words = " ".join(printed.split())
    for text in ("momentum of --optimizer sgd and rmsprop; default: 0.9", "default: resnet50", "default: csv"):
        assert text in words
    parser = build_parser()
    for action in parser._actions:
        if action.dest in parser.defaults and parser.defaults[action.dest]() not in (False, None):
            assert "; default: " in str(action.help), action.dest


def test_a_type_that_no_flag_can_have_is_a_bug() -> None:
    with pytest.raises(TypeError, match="flags of the type <class 'complex'> are not supported"):
        kind_of(complex)
    assert kind_of(PositiveFloat | None).convert("0.5") == 0.5
    assert kind_of(list[NonNegativeInt]).number is int


def test_text_on_a_terminal_is_printed_as_it_is(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    make_console().print("valve [/closed] :car: [red]b[/] 12")
    assert capsys.readouterr().out == "valve [/closed] :car: [red]b[/] 12\n"
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    assert list(with_progress([1, 2], 2, "reading [/train] set")) == [1, 2]
    assert "reading [/train] set" in capsys.readouterr().out


def test_consoles_are_made_in_one_place() -> None:
    """So that class names and paths are never read as markup."""
    elsewhere = [
        str(path.relative_to(EXPERIMENTS))
        for path in EXPERIMENTS.rglob("*.py")
        if re.search(r"\bConsole\(", path.read_text(encoding="utf-8")) and path.name != "console.py"
    ]
    assert set(elsewhere) <= {"callbacks/progress.py", "benchmarks/loader_speed.py"}  # print numbers and fixed words


@dataclass
class Some:
    rate: PositiveFloat = flag(1.0, "rate of 50 %")


def test_a_percent_sign_may_stand_in_a_help() -> None:
    parser = Parser("x.py", "")
    parser.add_settings(Some)
    assert settings_from(parser.parse_args(["--rate", "2"]), Some) == Some(2.0)
    assert "rate of 50 %; default: 1.0" in parser.format_help()
