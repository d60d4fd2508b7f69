"""Fit a checkpoint's tensors to a module: names under a prefix, other numbers of input channels, other classes."""

from collections import deque
from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn

StateDict = dict[str, Tensor]

PREFIXES = (
    "module.",  # DataParallel, DistributedDataParallel, AveragedModel
    "_orig_mod.",  # torch.compile
    "model.",
    "net.",
    "network.",
    "backbone.",  # torchvision's segmentation networks, mmsegmentation, DINO
    "encoder.",  # segmentation_models.pytorch, SimSiam
    "base_encoder.",  # MoCo v3
    "encoder_q.",  # MoCo v1 and v2
)
"""Names under which training programs keep the network; they say nothing about its architecture."""

RUN_BACKBONE, RUN_CLASSIFIER = "network.backbone.", "network.head.classifier."
"""Where a run of this framework keeps the backbone and its classifier."""


def candidates(state: StateDict) -> Iterator[tuple[str, StateDict]]:
    """Yield a prefix and the tensors below it, without it: first all tensors, then those below each chain of prefixes.

    Shorter chains come first. Of a run of this framework, the only candidate is its backbone with its classifier.
    """
    if any(key.startswith(RUN_BACKBONE) for key in state):
        yield RUN_BACKBONE, below(state, RUN_BACKBONE) | below(state, RUN_CLASSIFIER)
        return
    queue = deque([("", state)])
    while queue:
        chain, tensors = queue.popleft()
        yield chain, tensors
        for prefix in PREFIXES:
            inner = below(tensors, prefix)
            if inner:
                queue.append((chain + prefix, inner))


def below(state: StateDict, prefix: str) -> StateDict:
    """Select the tensors whose names start with a prefix, and take it off."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def adapt_input_channels(state: StateDict, own: StateDict) -> tuple[StateDict, str]:
    """Fit an RGB checkpoint's first convolution to another number of input channels, and say what was done.

    The RGB filters are repeated in turn and scaled by 3 / in_channels, so that a grey image repeated over all channels
    gives the activations it gave; one channel gets their sum.
    """
    adapted, done = dict(state), ""
    for key, value in state.items():
        target = own.get(key)
        if (
            target is None
            or value.ndim != 4
            or value.shape[1] != 3
            or target.shape[1] == 3
            or target.shape[2:] != value.shape[2:]
        ):
            continue
        n = target.shape[1]
        adapted[key] = value.sum(1, keepdim=True) if n == 1 else value[:, torch.arange(n) % 3] * (3 / n)
        how = "are summed" if n == 1 else f"are repeated in turn and scaled by 3/{n}"
        done = f"the RGB filters of {key} {how} for {n} channel{'s' if n > 1 else ''}"
    return adapted, done


def state_dict_mismatch(state: StateDict, own: StateDict) -> str:
    """Describe in one line how a checkpoint differs from a module's own state dict; empty if it fits."""
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [key for key in own.keys() & state.keys() if own[key].shape != state[key].shape]
    parts = []
    if missing:
        parts.append(f"{len(missing)} of {len(own)} tensors are missing (first: {missing[0]})")
    if extra:
        parts.append(f"{len(extra)} do not belong (first: {extra[0]})")
    if shapes:
        key = min(shapes)
        parts.append(
            f"{len(shapes)} have another shape (first: {key}, {tuple(state[key].shape)} "
            f"where {tuple(own[key].shape)} is needed)"
        )
    return "; ".join(parts)


def load_classifier(classifier: nn.Module | None, state: StateDict, output_layer: Collection[str]) -> str:
    """Load all of a checkpoint's classifier that fits, and say what was done.

    Args:
        state: the checkpoint's classifier; empty if it has none.
        output_layer: names of the tensors that are loaded only if they are for as many classes.

    Raises:
        ValueError: some of the classifier's tensors are missing in `state`.
    """
    if classifier is None:
        return "its classifier is not used" if state else ""
    if not state:
        return "it has no classifier, so ours stays as initialised"
    own = classifier.state_dict()
    # Checkpoints older than PyTorch 0.4.1 lack the batch counters, which nothing here reads.
    missing = sorted(key for key in own.keys() - state.keys() if not key.endswith("num_batches_tracked"))
    if missing:
        raise ValueError(f"its classifier lacks {missing[0]}")
    state = {key: value for key, value in state.items() if key in own}
    other = {key for key in state if own[key].shape != state[key].shape}
    if other - set(output_layer):
        return f"its classifier is another (first: {min(other)}), so ours stays as initialised"
    output_layer = [key for key in output_layer if key in own]
    classes = [len(own[key]) for key in output_layer], [len(state[key]) for key in output_layer]
    classifier.load_state_dict(own | {key: value for key, value in state.items() if key not in other})
    if not other:
        return f"{len(own)} of its classifier"
    kept = f"its output layer is for {classes[1][0]} classes, so ours for {classes[0][0]} stays as initialised"
    return f"{len(own) - len(other)} of its classifier; {kept}" if len(own) > len(other) else kept
