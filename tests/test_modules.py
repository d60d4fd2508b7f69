"""The Lightning modules: schedules, precisions, auxiliary losses, and checkpoints that rebuild themselves."""

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from backbones import vit
from lightning_modules.classification import ClassificationModule
from lightning_modules.schedules import SCHEDULES, learning_rate_factor
from lightning_modules.segmentation import SegmentationModule

NAMES = ("sky", "road", "car")
CRF = {"iterations": 2, "sigma_alpha": 10.0}


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
    rates = [learning_rate_factor("step", step, 100, 10, [0.5, 0.9]) for step in (9, 10, 49, 50, 89, 90)]
    assert rates == pytest.approx([10 / 11, 1, 1, 0.1, 0.1, 0.01])
    with pytest.raises(ValueError, match="--milestones are of --schedule step; leave them out with poly"):
        learning_rate_factor("poly", 0, 1, 0, [0.5])
    with pytest.raises(ValueError, match="--milestones 0.5, 60000: give fractions of all steps, above 0 and below 1"):
        learning_rate_factor("step", 0, 1, 0, [0.5, 60000])
    with pytest.raises(ValueError, match="no schedule 'polly'"):
        learning_rate_factor("polly", 0, 1, 0)


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
    module.training_step(batch, 0).backward()
    auxiliary = [name for name, _ in module.named_parameters() if "aux" in name]
    assert auxiliary
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, f"no gradient for {name}"
    assert module.eval()(batch["image"]).shape == (2, 3)
    assert not SegmentationModule("googlenet", "unet", NAMES).network.has_aux
    without = ClassificationModule("googlenet", "classifier", NAMES, aux_weight=0)
    assert not without.network.has_aux
    assert not any("aux" in name for name, _ in without.named_parameters())


@pytest.mark.parametrize("kind", [SegmentationModule, ClassificationModule])
def test_one_class_teaches_nothing(kind) -> None:
    head = "unet" if kind is SegmentationModule else "classifier"
    with pytest.raises(ValueError, match=r"there are 1 classes \(sky\); a loss needs 2 or more"):
        kind("lenet5", head, ["sky"])


@pytest.mark.parametrize(("precision", "dtype"), [("bf16-true", torch.bfloat16), ("64-true", torch.float64)])
@pytest.mark.parametrize(
    ("kind", "backbone", "head", "options"),
    [
        (SegmentationModule, "resnet18", "deeplab", {"class_weights": [0.3, 1.0, 3.3], "loss": "focal+0.5*lovasz"}),
        (SegmentationModule, "resnet18", "fcn", {"aux_weight": 0.4, "loss": "ohem+unet_border+dice"}),
        (SegmentationModule, "resnet18", "unet", {"crf": CRF}),
        (ClassificationModule, "vit_b_32", "classifier", {"label_smoothing": 0.1}),
    ],
)  # fmt: skip
def test_a_network_in_another_precision_trains_and_scores(
    tmp_path, kind, backbone, head, options, precision: str, dtype: torch.dtype, monkeypatch, quick_weights
) -> None:
    monkeypatch.setitem(vit.VARIANTS, "vit_b_32", vit.Variant(patch=32, channels=64, depth=2, heads=2))
    module = kind(backbone, head, NAMES, lr=1e-3, **options)
    before = module.network.state_dict()
    trainer = quiet_trainer(tmp_path, max_epochs=1, precision=precision)
    loader = DataLoader(items(kind.task, 4), 2)
    trainer.fit(module, loader, loader)
    parameters = dict(module.network.named_parameters())
    assert {parameter.dtype for parameter in parameters.values()} == {dtype}
    assert all(parameter.isfinite().all() for parameter in parameters.values())
    assert any(not torch.equal(parameter, before[name].to(dtype)) for name, parameter in parameters.items())
    scores = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert 0.5 < scores["val/loss"] < 6
    assert module.split_loss("val").totals.dtype == torch.float64
    assert 0.5 < scores["train/loss_epoch"] < 9


def test_validation_scores_do_not_depend_on_the_batch_size(tmp_path) -> None:
    samples = items("segmentation", 8)
    for index, sample in enumerate(samples):
        sample["target"][: 4 * index] = 255
    module = SegmentationModule("resnet18", "unet", NAMES, loss="cross_entropy+dice", class_weights=[0.5, 1.0, 3.0])
    one, eight = (
        quiet_trainer(tmp_path).validate(module, DataLoader(samples, size), verbose=False)[0] for size in (1, 8)
    )
    assert one == pytest.approx(eight, rel=1e-5)
