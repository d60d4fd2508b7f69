"""FSDP2: shard a module's weights over the ranks, and keep the ranks in step where they have unequal work."""

from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

from lightning_modules.blocks import blocks
from lightning_modules.network import Network

SIDE = 224
"""Height and width in pixels of the blank image that a rank without work computes; every network takes it."""


def shard(network: Network, crf: nn.Module | None, mesh: DeviceMesh) -> None:
    """Shard the backbone's blocks, then the rest of the network, and a CRF that is learned, over the mesh's ranks.

    Raises:
        ValueError: the backbone has no blocks.
    """
    for block in blocks(network.backbone):
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)
    register_fsdp_forward_method(network, "forward_with_aux")
    if crf is not None and any(True for _ in crf.parameters()):
        fully_shard(crf, mesh=mesh)


def is_sharded(module: nn.Module) -> bool:
    return isinstance(module, FSDPModule)


class ShardedEvaluation(pl.Callback):
    """Lets ranks evaluate unequal numbers of batches under FSDP2. Does nothing under other strategies.

    A sharded network gathers its weights from all ranks in each forward pass, so all ranks must run equally many. At
    the end of a split, ranks that had fewer batches, or empty ones, run the network on a blank image and drop the
    result.
    """

    def __init__(self) -> None:
        self.missing = 0

    def on_validation_start(self, trainer: pl.Trainer, module: Any) -> None:
        if is_sharded(module.network):
            # Unlike DDP, FSDP2 does not broadcast buffers such as batch norm statistics at every step.
            for buffer in module.network.buffers():
                torch.distributed.broadcast(buffer, 0)

    def on_validation_epoch_start(self, trainer: pl.Trainer, module: Any) -> None:
        self.agree(trainer, module, trainer.num_val_batches)

    def on_test_epoch_start(self, trainer: pl.Trainer, module: Any) -> None:
        self.agree(trainer, module, trainer.num_test_batches)

    def agree(self, trainer: pl.Trainer, module: Any, batches: list[int | float]) -> None:
        """Find out how many forward passes the busiest rank may run."""
        if is_sharded(module.network):
            most = torch.tensor(sum(batches), dtype=torch.int64, device=module.device)
            self.missing = int(trainer.strategy.reduce(most, reduce_op="max"))

    def on_validation_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        self.missing -= len(batch["image"]) > 0

    def on_test_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        self.missing -= len(batch["image"]) > 0

    def on_validation_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        self.make_up(trainer, module)

    def on_test_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        self.make_up(trainer, module)

    def make_up(self, trainer: pl.Trainer, module: Any) -> None:
        """Run the forward passes that this rank is behind."""
        if not is_sharded(module.network):
            return
        precision = trainer.precision_plugin
        blank = torch.zeros(1, module.hparams["in_channels"], SIDE, SIDE, device=module.device)
        for _ in range(self.missing):
            with precision.forward_context():
                module(precision.convert_input(blank))
