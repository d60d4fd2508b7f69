"""Learning-rate schedules: the factor on the base rate at each optimiser step, with linear warm-up."""

import math
from collections.abc import Callable

SCHEDULES: dict[str, Callable[[float], float]] = {
    # progress in [0, 1) after warm-up -> factor
    "poly": lambda progress: (1 - progress) ** 0.9,  # DeepLab v2
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),  # Loshchilov and Hutter 2017
    "step": lambda progress: 0.1 ** math.floor(progress * 3),  # a tenth at one third and at two thirds
    "constant": lambda progress: 1.0,
}


def learning_rate_factor(schedule: str, step: int, total: int, warmup: int) -> float:
    """Factor at optimiser step `step` of `total`; the first `warmup` steps rise linearly to 1.

    Raises:
        ValueError: no schedule has that name.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"no schedule '{schedule}'; there are {', '.join(SCHEDULES)}")
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return SCHEDULES[schedule](min(1.0, (step - warmup) / max(1, total - warmup)))
