"""A classifier applied to whole images of any size: its class scores are averaged over all places.

Very Deep Convolutional Networks (Simonyan, Zisserman 2014, arXiv:1409.1556, section 3.2). Fully connected layers become
convolutions; where a network averages its last map before a linear layer, it does the same already.
"""

from dataclasses import replace

from torch import nn

from backbones.classifiers import PooledClassifier
from backbones.fully_connected import FullyConnectedBackbone
from backbones.swin import NormedLinear
from experiments.inference.trained import TrainedNetwork

AVERAGING = (PooledClassifier, NormedLinear, nn.Sequential)
"""Classifiers that average the last map, whatever its size."""


def densely_applied(network: TrainedNetwork) -> TrainedNetwork:
    """The same network with its fully connected layers as convolutions.

    Raises:
        ValueError: the network is no classifier, or one that cannot be applied to images of any size this way.
    """
    module = network.module
    backbone, head = module.network.backbone, module.network.head
    classifier = getattr(head, "classifier", None)
    names = f"{module.hparams['backbone']} with {module.hparams['head']}"
    if network.task != "classification":
        raise ValueError(f"--dense is for classifiers; {names} labels every pixel anyway")
    if isinstance(backbone, FullyConnectedBackbone) and classifier is not None:
        return network if backbone.fully_convolutional else with_convolutions(network, backbone, classifier)
    if not isinstance(classifier, AVERAGING):
        raise ValueError(
            f"--dense averages class scores over the last map, and {names} scores no such map; leave it out"
        )
    return network


def with_convolutions(
    network: TrainedNetwork, backbone: FullyConnectedBackbone, classifier: nn.Module
) -> TrainedNetwork:
    """The network built anew with `fully_convolutional`, with its own weights, reshaped."""
    old = network.module
    settings = dict(old.hparams)
    settings["backbone_options"] = (settings["backbone_options"] or {}) | {"fully_convolutional": True}
    new = type(old)(**settings)
    state = new.network.backbone.convert_state_dict(backbone.state_dict() | classifier.state_dict())
    scores = new.network.head.classifier
    assert isinstance(scores, nn.Module)
    own = scores.state_dict().keys()
    scores.load_state_dict({key: state[key] for key in own})
    new.network.backbone.load_state_dict({key: value for key, value in state.items() if key not in own})
    parameter = next(old.parameters())
    return replace(network, module=new.eval().requires_grad_(False).to(parameter.device, parameter.dtype))
