"""READMEs: links lead somewhere, commands are ones that the programs take, named tests exist, README.md is short."""

import argparse
import importlib
import itertools
import re
import shlex
import sys
import tomllib
from pathlib import Path
from typing import Any, NoReturn

import pytest

from experiments.command_line.parser import Parser, settings_from
from experiments.command_line.run_config import RunConfig, build_parser, to_yaml, usage_problem
from experiments.run_files.run_folder import RunFolder
from experiments.training.write_results import next_steps

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("backbones", "heads", "lightning_modules", "datamodules", "experiments")
READMES = sorted([*ROOT.glob("*.md"), *(path for package in PACKAGES for path in (ROOT / package).rglob("*.md"))])
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
NAMES = {"--head": "unet", "--backbone": "resnet50", "--data": "folders"}
"""Flags of run.py that take a known name, and one for a word in capitals that stands for any."""
FOLDERS = ("--data-dir",)
FILES = ("--start-from", "--weights", "--class-weights", "--augmentation", "--config", "--crf-settings")
"""Flags of run.py that may name a file."""
CONTENTS = {"--config": to_yaml(RunConfig()), "--crf-settings": "w1: 4\n"}
"""What such a file has to hold; others may be empty."""


def title(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(text: str) -> str:
    """The text without fenced blocks."""
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.M | re.S)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives the headings: lower case, spaces to dashes, other punctuation left out."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", prose(text), re.M):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        number, name = 0, slug
        while name in found:
            number += 1
            name = f"{slug}-{number}"
        found.add(name)
    return found


def commands(text: str) -> list[str]:
    """The shell commands of a README: lines of fenced bash blocks, and inline code that starts a program."""
    found = []
    for block in re.findall(r"^ *```(?:bash|sh|shell)\n(.*?)^ *```", text, re.M | re.S):
        lines = re.sub(r"\\\n", " ", block).splitlines()
        found += [part for line in lines for part in re.split(r"&&|\|\|?(?= )", line) if part.strip()]
    inline = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(text))]
    return found + [code for code in inline if re.match(r"(python|torchrun|pip install|wandb sweep)\b.* ", code)]


COMMANDS = [(title(path), command) for path in READMES for command in commands(path.read_text(encoding="utf-8"))]


class Parsed(BaseException):
    """What a program's parser made of its arguments, raised in the place of its work."""


def parse_only(arguments: list[str], program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a program's own parser read the arguments. Whatever it does afterwards is not done.

    Raises:
        SystemExit: the program refuses them.
    """

    def stop_after(original: Any) -> Any:
        def parse_args(*given: Any, **named: Any) -> NoReturn:
            raise Parsed(original(*given, **named))

        return parse_args

    module = importlib.import_module(program)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", [program, *arguments])
        for kind in (Parser, argparse.ArgumentParser):
            patch.setattr(kind, "parse_args", stop_after(kind.parse_args))
        with pytest.raises(Parsed):
            module.main() if module.main.__code__.co_argcount == 0 else module.main(arguments)


def check_run_flags(arguments: list[str], tmp_path: Path) -> None:
    """What run.py says of the arguments before it imports torch; files and folders that they name exist."""
    given = [
        word for argument in arguments for word in (argument.split("=", 1) if "--" in argument[:2] else [argument])
    ]
    for place, (flag, value) in enumerate(itertools.pairwise(given), 1):
        if flag in NAMES and value.isupper():
            given[place] = NAMES[flag]
        elif flag in FOLDERS:
            given[place] = str(tmp_path)
        elif flag in FILES and (Path(value).suffix[1:].isalpha() or value.isupper()):
            file = tmp_path / f"{flag}{Path(value).suffix}"
            file.write_text(CONTENTS.get(flag, ""), encoding="utf-8")
            given[place] = str(ROOT / value if (ROOT / value).is_file() else file)
    parser = build_parser()
    config = settings_from(parser.parse_args(given), RunConfig)
    assert usage_problem(config) is None


def program_of(words: list[str]) -> tuple[str, list[str]] | None:
    """The module of the program of this project that a command starts, and its arguments; None for other commands."""
    for place, word in enumerate(words[:-1] if words[:2] == ["python", "-m"] else words):
        if word == "-m" and words[place + 1].startswith("experiments."):
            return words[place + 1], words[place + 2 :]
        if re.fullmatch(r"(\./)?experiments/[\w/]+\.py", word):
            assert (ROOT / word).is_file(), f"there is no {word}"
            return word.removesuffix(".py").replace("/", "."), words[place + 1 :]
    return None


def check(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if a command is not one that its program takes."""
    words = shlex.split(command.replace("…", ""), comments=True)
    words = words[: next((place for place, word in enumerate(words) if word in (">", "2>", "...", "&")), len(words))]
    for extra in re.findall(r"\[([\w,]+)\]", command) if words[:2] == ["pip", "install"] else ():
        assert set(extra.split(",")) <= set(EXTRAS), f"pyproject.toml has no extra {extra}"
    if words[:2] == ["wandb", "sweep"]:
        assert (ROOT / words[2]).is_file(), f"there is no {words[2]}"
    started = program_of(words)
    if started is None or started[0].startswith("experiments.recipes"):
        return
    program, arguments = started
    own, _, of_run = " ".join(map(shlex.quote, arguments)).partition(" -- ")
    if program in ("experiments.run", "experiments.show_data"):
        check_run_flags(arguments, tmp_path)
        return
    parse_only(arguments if not of_run else shlex.split(own), program, monkeypatch)
    if of_run:
        check_run_flags(shlex.split(of_run), tmp_path)


@pytest.mark.parametrize(
    ("readme", "command"), COMMANDS, ids=[f"{name}-{text.split('#')[0][:60]}" for name, text in COMMANDS]
)
def test_a_command_is_one_that_its_program_takes(
    readme: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        check(command, tmp_path, monkeypatch)
    except SystemExit as end:  # --help ends with 0
        assert not end.code, f"{readme}: refused with exit code {end.code}: {command}"


@pytest.mark.parametrize(
    "command",
    [
        "python experiments/run.py --bakbone resnet50",
        "python experiments/run.py --backbone resnet51",
        "python experiments/run.py --backbone lenet5 --head fcn8s  # a pair that cannot be built",
        "python experiments/runs.py --list",
        "python experiments/compare.py runs --sort gmac",
        "python experiments/tune.py --trials many -- --head unet",
        "python experiments/grid.py --backbones resnet50 --heads unet -- --epoch 3",
        "python experiments/benchmarks/loader_speed.py --only camvid",
        "torchrun --nnodes 2 experiments/run.py --node 2",
        'pip install -e ".[comparing]"',
        "wandb sweep experiments/sweeps/heads.yaml",
    ],
)
def test_a_wrong_command_is_found(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((SystemExit, AssertionError)):
        check(command, tmp_path, monkeypatch)


def test_commands_that_a_run_ends_with_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, *lines = next_steps(RunFolder(tmp_path / "my runs" / "a")).splitlines()
    assert len(lines) == 3
    for line in lines:
        check(line, tmp_path, monkeypatch)
    with pytest.raises(SystemExit):
        check(lines[0].replace("  #", " --unknown  #"), tmp_path, monkeypatch)


def test_commands_are_found_in_every_form() -> None:
    fenced = "```bash\npip install -e . && python experiments/run.py \\\n  --matrix  # all\n```\n"
    text = f"Try `python experiments/run.py\n--list`.\n\n{fenced}"
    assert [shlex.split(one, comments=True)[-1] for one in commands(text)] == [".", "--matrix", "--list"]
    named = {name.split("/")[0] for name, _ in COMMANDS}
    assert {"README.md", "CONTRIBUTING.md", "experiments"} <= named


@pytest.mark.parametrize("path", READMES, ids=title)
def test_links_lead_somewhere(path: Path) -> None:
    text = prose(path.read_text(encoding="utf-8"))
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    for target in targets:
        if re.match(r"https?://|mailto:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), f"{target}: no such file"
        if anchor:
            assert anchor in anchors(there.read_text(encoding="utf-8")), f"{target}: no such heading"


def test_anchors_are_github_s() -> None:
    text = "# A `b` & C!\n## Pages, 2\n```bash\n# no heading\n```\n## Pages, 2\n### Images: `--data folders`\n"
    assert anchors(text) == {"a-b--c", "pages-2", "pages-2-1", "images---data-folders"}


@pytest.mark.parametrize("path", READMES, ids=title)
def test_named_tests_exist(path: Path) -> None:
    for file, name in re.findall(r"(test_\w+\.py)(?:::(test_\w+))?", path.read_text(encoding="utf-8")):
        assert (ROOT / "tests" / file).is_file(), f"there is no tests/{file}"
        assert not name or f"def {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), (
            f"{file} has no {name}"
        )


def test_every_folder_has_a_readme() -> None:
    for package in PACKAGES:
        assert (ROOT / package / "README.md").is_file(), f"{package}/ has no README.md"


def test_readme_is_short_and_pictures_are_small() -> None:
    assert (ROOT / "README.md").stat().st_size <= 12 * 1024
    for picture in (ROOT / "experiments" / "images").iterdir():
        assert picture.stat().st_size <= 2**20, f"{picture.name} is larger than 1 MiB"
