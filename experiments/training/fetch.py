"""Downloads what runs need, on a machine that has a network, before they start elsewhere."""

from backbones import find_backbone
from experiments.command_line.run_flags import RunConfig
from experiments.training.build import build_data
from heads import find_head


def fetch(runs: list[RunConfig]) -> None:
    """Download the published weights and the data sets that the runs ask for, each of them once."""
    for backbone in dict.fromkeys(run.backbone for run in runs if run.weights == "imagenet"):
        find_backbone(backbone)(weights="imagenet")
    wanted = {(run.data, run.data_dir, find_head(run.head).task): run for run in runs if run.download}
    for run in wanted.values():
        build_data(run).sources()
