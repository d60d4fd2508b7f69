"""The Lightning modules: scores, optimiser groups, schedules, and checkpoints that rebuild themselves."""

import math

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_modules.base import parameter_groups
from lightning_modules.classification import ClassificationModule
from lightning_modules.metrics import ClassificationScores, SegmentationScores
from lightning_modules.schedules import SCHEDULES, learning_rate_factor
from lightning_modules.segmentation import SegmentationModule

NAMES = ("sky", "road", "car")


def brute_force_iou(truth: np.ndarray, said: np.ndarray, classes: int) -> list[float]:
    valid = truth != 255
    scores = []
    for c in range(classes):
        both = ((truth == c) & (said == c) & valid).sum()
        either = (((truth == c) | (said == c)) & valid).sum()
        scores.append(both / either if either else math.nan)
    return scores


def test_scores_equal_counting_by_hand_whatever_the_batches() -> None:
    logits = torch.randn(7, 3, 11, 13)
    target = torch.randint(0, 3, (7, 11, 13))
    target[torch.rand(target.shape) < 0.1] = 255
    logits[:, 2] = logits[:, 2] - 1  # make a class rarer
    results = []
    for size in (7, 3, 1):
        metric = SegmentationScores(3, 255)
        for start in range(0, 7, size):
            metric.update(logits[start : start + size], target[start : start + size])
        assert metric.matrix().dtype == torch.int64
        results.append({name: value.item() for name, value in metric.scores(NAMES).items()})
    assert results[0] == results[1] == results[2]
    expected = brute_force_iou(target.numpy(), logits.argmax(1).numpy(), 3)
    for name, value in zip(NAMES, expected, strict=True):
        assert results[0][f"iou/{name}"] == pytest.approx(value, abs=1e-12)
    assert results[0]["miou"] == pytest.approx(np.mean(expected), abs=1e-12)


def test_a_class_that_does_not_occur_does_not_lower_the_mean() -> None:
    metric = SegmentationScores(3, 255)
    target = torch.tensor([[[0, 1]]])
    metric.update(torch.nn.functional.one_hot(target, 3).movedim(-1, 1).float(), target)
    scores = metric.scores(NAMES)
    assert scores["miou"] == 1
    assert scores["iou/car"].isnan()


def test_top5_counts_over_all_images() -> None:
    metric = ClassificationScores(6)
    logits = torch.tensor([[6.0, 5, 4, 3, 2, 1]]).repeat(3, 1)
    metric.update(logits[:2], torch.tensor([0, 4]))
    metric.update(logits[2:], torch.tensor([5]))
    scores = metric.scores(("a", "b", "c", "d", "e", "f"))
    assert scores["top1"].item() == pytest.approx(1 / 3)
    assert scores["top5"].item() == pytest.approx(2 / 3)


def test_schedules_warm_up_and_end_where_they_should() -> None:
    for name in SCHEDULES:
        factors = [learning_rate_factor(name, step, 100, 10) for step in range(101)]
        assert factors[:10] == sorted(factors[:10])
        assert factors[10] == 1
        assert factors[99] <= 1
    assert learning_rate_factor("poly", 55, 100, 10) == pytest.approx(0.5**0.9)
    assert learning_rate_factor("cosine", 55, 100, 10) == pytest.approx(0.5)
    assert learning_rate_factor("step", 99, 100, 0) == pytest.approx(0.01)
    assert learning_rate_factor("poly", 100, 100, 10) == 0
    with pytest.raises(ValueError, match="no schedule 'polly'"):
        learning_rate_factor("polly", 0, 1, 0)


def test_groups_spare_norms_and_biases_and_slow_the_backbone() -> None:
    module = SegmentationModule("resnet18", "unet", NAMES)
    groups = parameter_groups(module.network, 1.0, 0.1, 5e-4)
    counted = [p for group in groups for p in group["params"]]
    assert len(counted) == len(list(module.parameters()))
    for group in groups:
        for parameter in group["params"]:
            assert (group["weight_decay"] == 0) == (parameter.ndim == 1)
    backbone = {id(p) for p in module.network.backbone.parameters()}
    for group in groups:
        for parameter in group["params"]:
            assert group["lr"] == (0.1 if id(parameter) in backbone else 1.0)


def items(task: str, count: int = 6, size: int = 32) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    shape = (size, size) if task == "segmentation" else ()
    return [
        {
            "image": torch.randn(3, size, size, generator=generator),
            "target": torch.randint(0, 3, shape, generator=generator),
        }
        for _ in range(count)
    ]


def quiet_trainer(tmp_path, **more) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path, **more,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "head", "options"),
    [(SegmentationModule, "deeplab", {"dropout": 0.1}), (ClassificationModule, "classifier", None)],
)
def test_checkpoint_rebuilds_itself_without_flags(tmp_path, kind, head, options) -> None:
    module = kind("resnet18", head, NAMES, output_stride=16, head_options=options, lr=0.01)
    trainer = quiet_trainer(tmp_path, max_epochs=1)
    trainer.fit(module, DataLoader(items(kind.task), 2), DataLoader(items(kind.task), 2))
    path = tmp_path / "last.ckpt"
    trainer.save_checkpoint(path)
    again = kind.load_from_checkpoint(path, weights_only=True, map_location="cpu")
    x = torch.randn(2, 3, 65, 33)
    with torch.inference_mode():
        assert torch.equal(module.eval()(x), again.eval()(x))


def test_checkpoint_does_not_ask_for_the_starting_weights_again(tmp_path) -> None:
    module = SegmentationModule("resnet18", "unet", NAMES)
    weights = tmp_path / "start.pth"
    torch.save(module.network.backbone.state_dict() | module.network.backbone.classifier(1000).state_dict(), weights)
    module = SegmentationModule("resnet18", "unet", NAMES, weights=str(weights))
    assert "weights" not in module.hparams
    trainer = quiet_trainer(tmp_path, max_epochs=1)
    trainer.fit(module, DataLoader(items("segmentation"), 2))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    weights.unlink()
    SegmentationModule.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)


def test_scores_start_anew_each_epoch(tmp_path) -> None:
    module = SegmentationModule("resnet18", "unet", NAMES, lr=1e-12)
    loader = DataLoader(items("segmentation"), 2)
    quiet_trainer(tmp_path, max_epochs=2, num_sanity_val_steps=0).fit(module, loader, loader)
    assert module.split_scores("val").matrix().sum() == 6 * 32 * 32


def test_a_head_of_the_other_task_is_refused() -> None:
    with pytest.raises(ValueError, match="classifier is a classification head"):
        SegmentationModule("resnet18", "classifier", NAMES)


@pytest.mark.parametrize(
    ("backbone", "head", "weight"), [("resnet18", "fcn", 0.4), ("resnet18", "fcn", None), ("googlenet", "unet", 0.4)]
)
def test_every_parameter_is_optimised_the_auxiliary_heads_too(backbone: str, head: str, weight: float | None) -> None:
    module = SegmentationModule(backbone, head, NAMES, aux_weight=weight)
    grouped = [id(p) for group in parameter_groups(module.network, 1.0, 0.1, 5e-4) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in module.parameters())
    assert (module.network.aux_head is not None) == (weight is not None)


def test_the_auxiliary_loss_counts_by_its_weight() -> None:
    batch = {"image": torch.randn(2, 3, 64, 64), "target": torch.randint(0, 3, (2, 64, 64)), "name": ["a", "b"]}
    module = SegmentationModule("resnet18", "fcn", NAMES, aux_weight=0.4, head_options={"dropout": 0.0}).train()
    module.log = lambda *_, **__: None
    module.network.aux_head.layers[3].p = 0.0
    logits, (aux,) = module.network.forward_with_aux(batch["image"])
    expected = module.loss(logits, batch["target"]) + 0.4 * module.loss(aux, batch["target"])
    torch.testing.assert_close(module.training_step(batch, 0), expected)


def test_auxiliary_classifiers_are_trained_and_then_gone() -> None:
    module = ClassificationModule("googlenet", "classifier", NAMES)
    batch = {"image": torch.randn(2, 3, 64, 64), "target": torch.tensor([0, 2])}
    module._step(batch, "train").backward()
    auxiliary = [name for name, _ in module.named_parameters() if "aux" in name]
    assert auxiliary
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, f"no gradient for {name}"
    assert module.eval()(batch["image"]).shape == (2, 3)
    assert not SegmentationModule("googlenet", "unet", NAMES).network.has_aux
