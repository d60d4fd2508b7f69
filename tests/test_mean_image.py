"""The mean image: what it is, that a checkpoint carries it, and where it is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.digits import Digits
from datamodules.mean_image import mean_image
from experiments.command_line.run_config import RunConfig
from experiments.training.build import prepare
from lightning_modules.classification import ClassificationModule
from lightning_modules.mean_image import MeanImage


def test_it_is_the_mean_of_the_training_images_before_the_first_step() -> None:
    data, module = prepare(RunConfig(backbone="lenet5", head="classifier", data="digits", workers=0, mean_image=True))
    assert data.train is not None
    images = np.stack([data.train.source[index][0] for index in range(len(data.train))])
    mean = images.mean(0).transpose(2, 0, 1) / 255
    shift, scale = (np.array(values)[:, None, None] for values in (data.mean, data.std))
    held = module.network.mean_image
    assert isinstance(held, MeanImage)
    assert held.values.shape[1:] == data.image_size
    assert mean.shape[1:] == data.image_size
    torch.testing.assert_close(held.values.double(), torch.tensor((mean - shift) / scale), atol=1e-5, rtol=0)


def test_a_network_sees_images_without_it() -> None:
    """Also where the image has another size: the mean is then scaled, and a constant one stays constant."""
    module = ClassificationModule("lenet5", "classifier", ["a", "b"], mean_image=[32, 32]).eval()
    plain = ClassificationModule("lenet5", "classifier", ["a", "b"]).eval()
    plain.network.load_state_dict(module.network.state_dict(), strict=False)
    held = module.network.mean_image
    assert isinstance(held, MeanImage)
    held.values.copy_(torch.randn(3, 32, 32))
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(module(x), plain(x - held.values))
    held.values.fill_(0.5)
    x = torch.randn(2, 3, 40, 36)
    torch.testing.assert_close(held(x), x - 0.5)


def test_a_checkpoint_and_an_exported_graph_carry_it(tmp_path: Path) -> None:
    module = ClassificationModule("lenet5", "classifier", ["a", "b"], mean_image=[32, 32]).eval()
    values = torch.randn(3, 32, 32)
    assert module.network.mean_image is not None
    module.network.mean_image.values.copy_(values)
    rebuilt = ClassificationModule(**module.hparams)
    rebuilt.load_state_dict(module.state_dict())
    assert rebuilt.network.mean_image is not None
    assert rebuilt.network.mean_image.values.equal(values)
    x = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(torch.export.export(module, (x,)).module()(x), module(x))


def test_only_images_of_one_size_have_one() -> None:
    data = Digits("segmentation", workers=0)
    data.setup("fit")
    with pytest.raises(ValueError, match="--mean-image needs images of one size"):
        mean_image(data)
