"""`run.py --list`: every backbone, head and data set, from the sources and catalogue.json, without importing torch."""

import ast
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from experiments.command_line.known_names import ROOT, catalogue, names_of


def first_lines(folder: str) -> dict[str, str]:
    """name -> first line of the docstring of the file its class is imported from."""
    tree = ast.parse((ROOT / folder / "__init__.py").read_text(encoding="utf-8"))
    modules = {
        alias.name: node.module
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    table = next(
        node.value for node in tree.body if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Dict)
    )  # the folder's one dict
    lines = {}
    for key, value in zip(table.keys, table.values, strict=True):
        named = value.args[0] if isinstance(value, ast.Call) else value  # partial(Class, "variant") or Class
        assert isinstance(key, ast.Constant)
        assert isinstance(named, ast.Name)
        source = (ROOT / str(modules[named.id]).replace(".", "/")).with_suffix(".py")
        docstring = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
        lines[str(key.value)] = docstring.splitlines()[0] if docstring else ""
    return lines


def figures(entry: dict[str, Any]) -> tuple[str, ...]:
    """Parameters, GMACs, top-1, output strides and input size as a table shows them; a dash for what is not known."""
    if not entry:
        return ("-",) * 5
    return (
        f"{entry['params'] / 1e6:.2f} M",
        f"{entry['gmacs']:.2f}",
        "-" if entry["top1"] is None else f"{entry['top1']:.2f}",
        " ".join(map(str, entry["output_strides"])),
        str(entry["input_size"]),
    )


def columns(cells: Sequence[str]) -> str:
    return "".join(f"{cell:>{width}}" for cell, width in zip(cells, (11, 9, 9, 11, 8), strict=True))


def print_listing() -> None:
    """Backbones under their papers, then heads and data sets, one line each."""
    console = Console(highlight=False)
    known = catalogue()
    titles = ("params", "GMACs", "top-1", "strides", "input")
    console.print(f"[bold]{'backbone':22}{columns(titles)}")
    shown = ""
    for name, paper in first_lines("backbones").items():
        if paper != shown:
            console.print(f"[dim]{paper}", no_wrap=True, overflow="ellipsis")
            shown = paper
        console.print(f"{name:22}{columns(figures(known.get(name, {})))}")
    console.print("timm/NAME             any timm model with features_only; pip install 'graft\\[timm]'")
    for folder, title in (("heads", "head"), ("datamodules", "data")):
        console.print(f"\n[bold]{title}")
        for name, line in first_lines(folder).items():
            console.print(f"{name:22}{line}", no_wrap=True, overflow="ellipsis")


def print_matrix() -> None:
    """Heads across, backbones down: a dot where every output stride works, 32 where only it does, a dash if refused."""
    console = Console(highlight=False)
    heads, known = names_of("heads"), catalogue()
    width = max(map(len, known))
    console.print("\n".join(f"{'':{width}} {'│  ' * i}┌─ {head}" for i, head in enumerate(heads)), style="dim")
    refused = []
    for name, entry in known.items():
        cells = []
        for head in heads:
            reason = entry["refused"].get(head)
            refused += [reason] if reason else []
            cells.append("[red]- [/]" if reason else "● " if len(entry["output_strides"]) == 3 else "32")
        console.print(f"{name:{width}} {' '.join(cells)}", soft_wrap=True)
    pairs = len(known) * len(heads)
    console.print(f"\n{pairs - len(refused)} of {pairs} pairs work: ● at output stride 8, 16 and 32, 32 at 32 only")
    console.print(f"{len(refused)} are refused (-):")
    for reason in refused:
        console.print(f"  {reason.split('. ')[0]}", soft_wrap=True)
