"""What a user should know about the data before training, although it is no error."""

from lightning.pytorch.utilities import rank_zero_only


def note(text: str) -> None:
    """Print one line, on rank 0 only."""
    rank_zero_only(print)(f"note: {text}")
