"""Parts of READMEs that programs write, between two comments that name the program."""

from pathlib import Path

from experiments.run_files.atomic_file import write_atomically


def replace_part(path: Path, name: str, text: str) -> None:
    """Put the text between `<!-- begin NAME -->` and `<!-- end NAME -->`.

    Raises:
        ValueError: the file lacks one of the two comments.
    """
    first, last = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    before, begin, rest = path.read_text(encoding="utf-8").partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end:
        raise ValueError(f"{path} lacks the lines {first} and {last}")
    write_atomically(path, f"{before}{begin}\n{text}\n{end}{after}")
