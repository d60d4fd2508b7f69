"""Learning-rate schedules: the factor by which each optimiser step's learning rate is multiplied; linear warm-up."""

import math
from collections.abc import Callable, Sequence

SCHEDULES: dict[str, Callable[[float], float]] = {
    # Each maps the progress after warm-up, in [0, 1], to a factor.
    "poly": lambda progress: (1 - progress) ** 0.9,  # DeepLab v2
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),  # Loshchilov and Hutter 2017
    "step": lambda progress: 0.1 ** math.floor(progress * 3),  # a tenth at one third and at two thirds
    "exponential": lambda progress: 0.97 ** math.floor(progress * 350 / 2.4),  # EfficientNet: of 350 epochs, each 2.4
    "constant": lambda progress: 1.0,
}


def learning_rate_factor(
    schedule: str, step: int, total: int, warmup: int, milestones: Sequence[float] | None = None
) -> float:
    """Return the factor for optimiser step `step`, counted from 0, of `total`.

    It rises linearly over the first `warmup` steps and is 1 at step `warmup`.

    Args:
        milestones: of the schedule "step", the fractions of all steps after which the factor falls to a tenth; None
            divides the steps after warm-up into three.

    Raises:
        ValueError: no schedule has that name, or it has no milestones, or they are not fractions.
    """
    if milestones is not None:
        if schedule != "step":
            raise ValueError(f"--milestones are of --schedule step; leave them out with {schedule}")
        if not all(0 < one < 1 for one in milestones):
            given = ", ".join(f"{one:g}" for one in milestones)
            raise ValueError(f"--milestones {given}: give fractions of all steps, above 0 and below 1")
    if schedule not in SCHEDULES:
        raise ValueError(f"no schedule '{schedule}'; there are {', '.join(SCHEDULES)}")
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if milestones is not None:
        return 0.1 ** sum(step >= one * total for one in milestones)
    return SCHEDULES[schedule](min(1.0, (step - warmup) / max(1, total - warmup)))
