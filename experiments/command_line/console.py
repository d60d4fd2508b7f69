"""The terminal: text is printed as it is, whatever brackets and colons class names and paths hold."""

from rich.console import Console


def make_console(width_of_files: int | None = None) -> Console:
    """A rich console without markup, emoji codes and highlighting; styles are given as arguments and `Text` instead.

    Args:
        width_of_files: columns to assume where the output goes to a file or a pipe.
    """
    console = Console(markup=False, emoji=False, highlight=False)
    if width_of_files is not None and not console.is_terminal:
        console.width = width_of_files
    return console
