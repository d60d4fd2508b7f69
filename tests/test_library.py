"""The example in lightning_modules/README.md does what it says."""

import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parent.parent / "lightning_modules" / "README.md"


def test_the_readmes_example_trains_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(example, str(README), "exec"), names)
    assert names["logits"].shape == (1, 21, 65, 97)
    assert 0 <= float(capsys.readouterr().out.splitlines()[-1].removeprefix("tensor(").rstrip(")")) <= 1
    assert names["module"].hparams["class_names"] == ["sky", "road"]
