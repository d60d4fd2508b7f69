"""`run.py --list` and `--matrix`: names, papers and costs from the sources and catalogue.json. Imports no torch."""

import ast
from collections.abc import Sequence
from typing import Any

from rich.text import Text

from experiments.command_line.console import make_console
from experiments.command_line.known_names import catalogue, dict_literal, names_of, parsed

COLUMNS = {"params": 11, "GMACs": 9, "top-1": 9, "strides": 11, "input": 8}
"""Titles and widths."""


def descriptions(folder: str) -> dict[str, str]:
    """A line for each name of a folder: the paper of a backbone, otherwise the first line of its file's docstring."""
    init = f"{folder}/__init__.py"
    modules = {
        alias.name: f"{str(node.module).replace('.', '/')}.py"
        for node in parsed(init).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    table = dict_literal(init, folder.upper())
    lines = {}
    for key, value in zip(table.keys, table.values, strict=True):
        called = value.args[0] if isinstance(value, ast.Call) else value  # partial(Class, "variant") or Class
        assert isinstance(key, ast.Constant)
        assert isinstance(called, ast.Name)
        file = modules[called.id]
        first_line = (ast.get_docstring(parsed(file)) or "").split("\n")[0]
        lines[str(key.value)] = papers(file).get(str(key.value), first_line)
    return lines


def papers(file: str) -> dict[str, str]:
    """The papers in a file's dict PAPERS by variant: variants that are not from the paper of the file's first line."""
    try:
        table = dict_literal(file, "PAPERS")
    except LookupError:
        return {}
    return {variant: paper for paper, variants in ast.literal_eval(table).items() for variant in variants}


def table_cells(entry: dict[str, Any]) -> tuple[str, ...]:
    """Parameters, GMACs, top-1, output strides and input size as tables show them; dashes if nothing is known."""
    if not entry:
        return ("-",) * len(COLUMNS)
    return (
        f"{entry['params'] / 1e6:.2f} M",
        f"{entry['gmacs']:.2f}",
        "-" if entry["top1"] is None else f"{entry['top1']:.2f}",
        " ".join(map(str, entry["output_strides"])),
        str(entry["input_size"]),
    )


def aligned(cells: Sequence[str]) -> str:
    return "".join(f"{cell:>{width}}" for cell, width in zip(cells, COLUMNS.values(), strict=True))


def print_listing() -> None:
    """Print the backbones below their papers, then heads and data sets, one line each."""
    console = make_console()
    known = catalogue()
    console.print(f"{'backbone':22}{aligned(list(COLUMNS))}", style="bold")
    shown = ""
    for name, paper in descriptions("backbones").items():
        if paper != shown:
            console.print(paper, style="dim", no_wrap=True, overflow="ellipsis")
            shown = paper
        console.print(f"{name:22}{aligned(table_cells(known.get(name, {})))}")
    console.print("timm/NAME             any timm model with features_only; pip install 'graft[timm]'")
    for folder, title in (("heads", "head"), ("datamodules", "data")):
        console.print(f"\n{title}", style="bold")
        for name, line in descriptions(folder).items():
            console.print(f"{name:22}{line}", no_wrap=True, overflow="ellipsis")


def pair_counts() -> tuple[int, int]:
    """The number of pairs of a backbone and a head that work, and the number of all pairs."""
    known = catalogue()
    pairs = len(known) * len(names_of("heads"))
    return pairs - sum(len(entry["refused"]) for entry in known.values()), pairs


def print_matrix() -> None:
    """Print heads across and backbones down: ● if all output strides work, 32 if only that works, - if refused."""
    console = make_console()
    heads, known = names_of("heads"), catalogue()
    width = max(map(len, known), default=0)
    console.print("\n".join(f"{'':{width}} {'│  ' * i}┌─ {head}" for i, head in enumerate(heads)), style="dim")
    for name, entry in known.items():
        everywhere = "● " if len(entry["output_strides"]) == 3 else "32"
        cells = [Text("- ", "red") if head in entry["refused"] else Text(everywhere) for head in heads]
        console.print(Text(" ").join([Text(f"{name:{width}}"), *cells]), soft_wrap=True)
    working, pairs = pair_counts()
    console.print(f"\n{working} of {pairs} pairs work: ● at output stride 8, 16 and 32, 32 at 32 only")
    console.print(f"{pairs - working} are refused (-):")
    for entry in known.values():
        for reason in entry["refused"].values():
            console.print(f"  {reason.split('. ')[0]}", soft_wrap=True)
