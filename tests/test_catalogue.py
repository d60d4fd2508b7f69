"""The generated parts of the READMEs: papers of variants, the table of backbones, and the number of pairs."""

import re

from experiments import catalogue as program
from experiments.command_line.known_names import CATALOGUE, ROOT, catalogue, names_of
from experiments.command_line.listing import descriptions, pair_counts


def test_variants_have_their_own_papers() -> None:
    papers = descriptions("backbones")
    assert list(papers) == names_of("backbones")
    for name, words in {
        "resnet50": "Deep Residual Learning",
        "resnext50_32x4d": "Aggregated Residual Transformations",
        "wide_resnet50_2": "Wide Residual Networks",
        "efficientnet_b0": "EfficientNet: Rethinking",
        "efficientnet_v2_s": "EfficientNetV2",
        "swin_v2_t": "Swin Transformer V2",
    }.items():
        assert papers[name].startswith(words), name
        assert re.search(r"\b(19|20)\d\d\b", papers[name]), name


def test_files_are_what_the_program_would_write() -> None:
    """From the counted costs, which `--check` counts again in CI."""
    fresh = program.contents(catalogue())
    assert CATALOGUE in fresh
    for path, text in fresh.items():
        assert path.read_text(encoding="utf-8") == text, path
    tables = [path for path, text in fresh.items() if program.TABLE[0] in text]
    assert ROOT / "backbones" / "README.md" in tables


def test_the_number_of_pairs_is_typed_nowhere() -> None:
    working, pairs = pair_counts()
    for path in [ROOT / "README.md", *ROOT.glob("*/README.md")]:
        text = path.read_text(encoding="utf-8")
        generated = re.findall(f"{program.PAIRS[0]}(.*?){program.PAIRS[1]}", text)
        assert set(generated) <= {f"{working:,} of {pairs:,}"}
        typed = re.sub(f"{program.PAIRS[0]}.*?{program.PAIRS[1]}", "", text)
        assert f"{pairs:,}" not in typed, path


def test_only_what_is_marked_is_replaced() -> None:
    assert program.replaced("a <!-- pairs -->1<!-- end of pairs --> b", program.PAIRS, "2") == (
        "a <!-- pairs -->2<!-- end of pairs --> b"
    )
    for text in ("no marks", "<!-- pairs -->half", "half<!-- end of pairs -->"):
        assert program.replaced(text, program.PAIRS, "2") == text
