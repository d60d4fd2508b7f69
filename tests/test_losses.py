"""Losses against definitions written out, on maps with ignored pixels, and over two processes."""

import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the two ranks run this file

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from datamodules.digits import Digits
from lightning_modules.borders import border_weights, border_weights_of, near_boundary
from lightning_modules.classification import ClassificationModule
from lightning_modules.losses import LOSSES, OF_SETS, WeightedSum, terms
from lightning_modules.metrics import EpochLoss
from tests.warm_process import start_python

CLASSES = 3
WEIGHTS = (0.5, 1.0, 3.0)
PER_PIXEL = "cross_entropy+focal+boundary"


def sample() -> tuple[Tensor, Tensor]:
    logits = torch.randn(2, CLASSES, 8, 9, requires_grad=True)
    target = torch.randint(0, CLASSES, (2, 8, 9))
    target[0, :2] = 255
    return logits, target


@pytest.mark.parametrize("name", [*LOSSES, "cross_entropy+0.5*dice"])
def test_losses_fall_along_their_gradient_and_skip_ignored_pixels(name: str) -> None:
    loss = WeightedSum(name, CLASSES, class_weights=WEIGHTS)
    _, target = sample()
    logits = torch.zeros(2, CLASSES, 8, 9, requires_grad=True)
    value = loss(logits, target)
    (gradient,) = torch.autograd.grad(value, logits)
    assert gradient[0, :, :2].abs().max() == 0, "an ignored pixel pulled at the logits"
    assert loss(logits - gradient / gradient.abs().max() / 10, target) < value
    nothing = loss(logits, torch.full_like(target, 255))
    assert nothing.item() == 0
    assert not torch.autograd.grad(nothing, logits)[0].any()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_pytorchs(smoothing: float) -> None:
    logits, target = sample()
    ours = WeightedSum("cross_entropy", CLASSES, class_weights=WEIGHTS, label_smoothing=smoothing)
    plain = F.cross_entropy(logits, target, torch.tensor(WEIGHTS), ignore_index=255, label_smoothing=0)
    theirs = F.cross_entropy(logits, target, torch.tensor(WEIGHTS), ignore_index=255, label_smoothing=smoothing)
    torch.testing.assert_close(ours(logits, target), theirs)
    assert smoothing == 0 or not torch.isclose(plain, theirs)
    labels = torch.tensor([0, 2])
    logits = torch.randn(2, CLASSES)
    torch.testing.assert_close(WeightedSum("cross_entropy", CLASSES)(logits, labels), F.cross_entropy(logits, labels))


def test_weighted_sums_add_up() -> None:
    logits, target = sample()
    one, other = (WeightedSum(name, CLASSES)(logits, target) for name in ("cross_entropy", "lovasz"))
    torch.testing.assert_close(
        WeightedSum("2*cross_entropy + .25*lovasz", CLASSES)(logits, target), 2 * one + other / 4
    )
    assert terms("cross_entropy+0.5*dice") == [(1.0, "cross_entropy"), (0.5, "dice")]


def test_focal_pixel_by_pixel() -> None:
    logits, target = sample()
    losses, weights = [], 0.0
    for b, y, x in (target != 255).nonzero().tolist():
        label = int(target[b, y, x])
        p = logits[b, :, y, x].softmax(0)[label].item()
        losses.append(-((1 - p) ** 2) * math.log(p) * WEIGHTS[label])
        weights += WEIGHTS[label]
    ours = WeightedSum("focal", CLASSES, class_weights=WEIGHTS)(logits, target)
    assert ours.item() == pytest.approx(sum(losses) / weights, rel=1e-5)


def test_hard_examples_are_those_below_the_threshold_or_a_sixteenth() -> None:
    logits, target = sample()
    valid = target != 255
    losses = F.cross_entropy(logits, target, reduction="none", ignore_index=255)[valid]
    hard = losses[losses > -math.log(0.7)]
    assert 0 < len(hard) < len(losses)
    torch.testing.assert_close(WeightedSum("ohem", CLASSES)(logits, target), hard.mean())
    sure = 20 * F.one_hot(target.where(valid, 0), CLASSES).movedim(-1, 1) + logits
    losses = F.cross_entropy(sure, target, reduction="none", ignore_index=255)[valid]
    hardest = losses.sort().values[-(len(losses) // 16) :]
    torch.testing.assert_close(WeightedSum("ohem", CLASSES)(sure, target), hardest.mean())


def confident(target: Tensor, said: Tensor) -> tuple[Tensor, list[tuple[int, int, int]]]:
    """Logits that say `said` beyond doubt, and (both, truth, said) counts of each class in the truth."""
    valid = target != 255
    counts = [
        (int(((target == c) & (said == c)).sum()), int((target == c).sum()), int(((said == c) & valid).sum()))
        for c in range(CLASSES)
        if (target == c).any()
    ]
    return 100.0 * F.one_hot(said, CLASSES).movedim(-1, 1), counts


def test_lovasz_and_dice_of_sure_answers_are_the_scores_they_stand_for() -> None:
    _, target = sample()
    target[target == 2] = 1  # a class that does not occur counts for nothing
    logits, counts = confident(target, torch.randint(0, CLASSES, target.shape))
    ious = [1 - both / (truth + said - both) for both, truth, said in counts]
    assert WeightedSum("lovasz", CLASSES)(logits, target).item() == pytest.approx(np.mean(ious), rel=1e-5)
    dices = [1 - 2 * both / (truth + said) for both, truth, said in counts]
    assert WeightedSum("dice", CLASSES)(logits, target).item() == pytest.approx(np.mean(dices), rel=1e-5)
    weighted = WeightedSum("dice", CLASSES, class_weights=WEIGHTS)(logits, target).item()
    assert weighted == pytest.approx((0.5 * dices[0] + dices[1]) / 1.5, rel=1e-5)


def test_boundaries_are_where_another_label_is_near() -> None:
    _, target = sample()
    target[1] = 0
    target[1, 3, 4] = 2
    expected = torch.zeros(target.shape, dtype=torch.bool)
    for b, y, x in (target != 255).nonzero().tolist():
        window = target[b, max(0, y - 2) : y + 3, max(0, x - 2) : x + 3]
        expected[b, y, x] = len(set(window.unique().tolist()) - {255}) > 1
    found = near_boundary(target.where(target != 255, 0), target != 255, 2)
    assert torch.equal(found, expected)
    assert 0 < found[1].sum() < found[1].numel()
    logits = torch.randn(2, CLASSES, 8, 9)
    losses = F.cross_entropy(logits, target, reduction="none", ignore_index=255)
    weights = (1.0 + 4 * expected) * (target != 255)
    ours = WeightedSum("boundary", CLASSES)(logits, target)
    torch.testing.assert_close(ours, (losses * weights).sum() / weights.sum())


def test_unet_weighs_the_background_between_two_objects() -> None:
    labels = torch.zeros(20, 30, dtype=torch.int64)
    labels[5:15, 4:12] = 1
    labels[5:15, 15:20] = 1
    labels[0, 29] = 2
    weights = border_weights(labels.numpy())
    rows, columns = np.mgrid[:20, :30]
    distances = []
    for points in ((slice(5, 15), slice(4, 12)), (slice(5, 15), slice(15, 20)), (slice(0, 1), slice(29, 30))):
        ys, xs = rows[points].ravel(), columns[points].ravel()
        distances.append(np.hypot(rows[..., None] - ys, columns[..., None] - xs).min(-1))
    first, second, _ = np.sort(distances, axis=0)
    expected = np.where(labels.numpy() == 0, 10 * np.exp(-((first + second) ** 2) / 50), 0)
    np.testing.assert_allclose(weights, expected, rtol=1e-5, atol=1e-12)
    assert weights[10, 13] > 7
    one_object = torch.zeros(4, 4, dtype=torch.int64)
    assert not border_weights(one_object.numpy()).any()
    one_object[1] = 1
    assert not border_weights(one_object.numpy()).any()


def one_transform_for_each_object(labels: Tensor) -> np.ndarray:
    """U-Net's equation 2 with the distance to every object computed by itself."""
    foreground = labels.numpy() > 0
    objects, count = ndimage.label(foreground)
    distances = np.stack([ndimage.distance_transform_edt(objects != number) for number in range(1, count + 1)])
    nearest, second = np.sort(distances, axis=0)[:2]
    return np.where(foreground, 0, 10 * np.exp(-((nearest + second) ** 2) / 50))


def squares(pitch: int, size: int) -> Tensor:
    """Squares with 3 pixels of background between them."""
    inside = torch.arange(size) % pitch >= 3
    return (inside[:, None] & inside[None]).long()


@pytest.mark.parametrize("seed", range(8))
def test_unet_weights_need_no_transform_for_each_object(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    transform = cv2.distanceTransform
    monkeypatch.setattr(cv2, "distanceTransform", lambda *given: calls.append(given) or transform(*given))
    generator = torch.Generator().manual_seed(seed)
    # Single pixels, so that many are equally far from two or more objects; and a grid of squares.
    labels = (torch.rand(40, 50, generator=generator) < 0.02 * (1 + seed % 4)).long() if seed else squares(8, 64)
    _, count = ndimage.label(labels.numpy())
    assert count > 20
    np.testing.assert_allclose(
        border_weights(labels.numpy()), one_transform_for_each_object(labels), rtol=1e-4, atol=1e-7
    )
    assert len(calls) <= math.ceil(math.log2(count)) + 2


def test_workers_compute_the_border_weights_of_training_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    data = Digits("segmentation", image_size=(64, 64), batch_size=2, workers=0, weigh_borders=True)
    data.setup()
    batch = next(iter(data.train_dataloader()))
    labels = batch["target"].where(batch["target"] != 255, 0)
    torch.testing.assert_close(batch["border_weights"], border_weights_of(labels))
    assert batch["border_weights"].max() > 0.01
    assert "border_weights" not in next(iter(data.val_dataloader()))
    logits = torch.randn(2, 11, 64, 64)
    loss = WeightedSum("cross_entropy+unet_border", 11)
    expected = loss(logits, batch["target"])
    monkeypatch.setattr("lightning_modules.losses.border_weights_of", None)  # nothing is left to compute
    torch.testing.assert_close(loss(logits, batch["target"], batch["border_weights"]), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("dise", {}), "no loss 'dise'; there are cross_entropy"),
        (("cross_entropy-dice", {}), "'cross_entropy-dice' is not NAME or WEIGHT"),
        (("dice", {"class_weights": (1, 2)}), "2 class weights for 3 classes"),
        (("dice", {"class_weights": (1, 2, -1)}), "none negative"),
        (("dice", {"label_smoothing": 1}), "--label-smoothing is 1"),
    ],
)
def test_mistakes_are_named(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WeightedSum(arguments[0], CLASSES, **arguments[1])


def test_losses_of_maps_are_refused_for_classification() -> None:
    with pytest.raises(ValueError, match="--loss boundary weighs pixels by their neighbours"):
        ClassificationModule("lenet5", "classifier", ("a", "b"), loss="cross_entropy+boundary")


@pytest.fixture(scope="module")
def of_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """What this file, as the program of each of two ranks, has found; see `main`."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.manual_seed(0)
    torch.save(samples_of_ranks(), folder / "samples")
    ranks = [start_python([__file__, str(rank), str(folder)]) for rank in (0, 1)]
    assert [rank.wait(100) for rank in ranks] == [0, 0]
    return [torch.load(folder / f"found{rank}", weights_only=True) for rank in (0, 1)]


def samples_of_ranks() -> tuple[Tensor, Tensor]:
    """Logits of two images, and two targets for them: of the second, the first image has no valid pixel."""
    logits, target = sample()
    empty = target.clone()
    empty[0] = 255
    return logits.detach(), torch.stack((target, empty))


def gradients_of_rank(rank: int, logits: Tensor, targets: Tensor) -> Tensor:
    """The gradient of one image of two, for each target, as DDP averages gradients."""
    found = []
    for target in targets:
        own = logits[rank : rank + 1].clone().requires_grad_()
        WeightedSum(PER_PIXEL, CLASSES, class_weights=WEIGHTS)(own, target[rank : rank + 1]).backward()
        found.append(own.grad[0] / 2)
    return torch.stack(found)


def test_two_processes_pull_like_one_even_where_one_sees_nothing(of_two_ranks: list[dict[str, Tensor]]) -> None:
    logits, targets = of_two_ranks[0]["logits"].requires_grad_(), of_two_ranks[0]["targets"]
    found = torch.stack([one["gradients"] for one in of_two_ranks], 1)
    for target, result in zip(targets, found, strict=True):
        loss = WeightedSum(PER_PIXEL, CLASSES, class_weights=WEIGHTS)(logits, target)
        torch.testing.assert_close(result, torch.autograd.grad(loss, logits)[0])


EVERY_LOSS = "+".join(f"{number}*{name}" for number, name in enumerate(LOSSES, 1))


def split() -> tuple[Tensor, Tensor]:
    """Eight images whose ignored regions differ as CamVid's do: from nothing to all of the image."""
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(8, CLASSES, 16, 20, generator=generator)
    target = torch.randint(0, CLASSES, (8, 16, 20), generator=generator)
    for image in range(8):
        target[image, : 16 * image // 7] = 255
    return logits, target


def loss_of_split(expression: str, logits: Tensor, target: Tensor, batch_size: int, **options) -> float:
    loss = WeightedSum(expression, CLASSES, **options).eval()
    metric = EpochLoss(coefficient for coefficient, _ in loss.terms)
    for images, labels in zip(logits.split(batch_size), target.split(batch_size), strict=True):
        metric.update(*loss.sums(images, labels))
    return float(metric.compute())


@pytest.mark.parametrize("class_weights", [None, WEIGHTS])
@pytest.mark.parametrize("name", [*LOSSES, EVERY_LOSS])
def test_the_loss_of_a_split_does_not_depend_on_the_batch_size(name: str, class_weights) -> None:
    logits, target = split()
    one, three, eight = (loss_of_split(name, logits, target, size, class_weights=class_weights) for size in (1, 3, 8))
    assert one == pytest.approx(eight, rel=1e-6)
    assert three == pytest.approx(eight, rel=1e-6)
    if name not in OF_SETS and name in LOSSES:  # then it is the loss of the split as one batch
        whole = WeightedSum(name, CLASSES, class_weights=class_weights)(logits, target)
        assert eight == pytest.approx(whole.item(), rel=1e-6)


def test_losses_of_sets_are_averaged_over_the_images_with_valid_pixels() -> None:
    logits, target = split()
    assert (target[-1] == 255).all()
    images = [WeightedSum("dice", CLASSES)(logits[i : i + 1], target[i : i + 1]).item() for i in range(7)]
    assert loss_of_split("dice", logits, target, 8) == pytest.approx(np.mean(images), rel=1e-6)


SEVEN = slice(7)
"""Of the images of `split`: four on one rank and three on the other."""


def test_two_ranks_report_the_loss_that_one_reports(of_two_ranks: list[dict[str, Tensor]]) -> None:
    logits, target = split()
    expected = loss_of_split(EVERY_LOSS, logits[SEVEN], target[SEVEN], 7, class_weights=WEIGHTS)
    assert [float(one["loss"]) for one in of_two_ranks] == pytest.approx([expected, expected], rel=1e-6)


def test_an_infinite_logit_under_an_ignored_pixel_does_not_matter() -> None:
    logits, target = sample()
    expected = WeightedSum(PER_PIXEL, CLASSES)(logits, target)
    broken = logits.detach().clone()
    broken[0, 0, 0] = -math.inf  # of the class that stands in for the ignored label
    broken.requires_grad_()
    loss = WeightedSum(PER_PIXEL, CLASSES)(broken, target)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert broken.grad.isfinite().all()


def sorted_lovasz(logits: Tensor, target: Tensor) -> Tensor:
    """The mean over the classes of sorted errors times the rise of the Jaccard loss, in float64."""
    losses = []
    valid = target != 255
    for c in range(CLASSES):
        truth = (target == c)[valid].double()
        errors, order = (truth - logits.softmax(1)[:, c][valid].double()).abs().sort(descending=True)
        hits = truth[order].cumsum(0)
        jaccard = 1 - (truth.sum() - hits) / (truth.sum() + (1 - truth[order]).cumsum(0))
        losses.append((errors * torch.diff(jaccard, prepend=torch.zeros(1))).sum())
    return torch.stack(losses).mean()


def test_lovasz_is_the_sum_of_sorted_errors_times_the_rise_of_the_jaccard_loss() -> None:
    logits, target = sample()
    expected = sorted_lovasz(logits, target).item()
    assert WeightedSum("lovasz", CLASSES)(logits, target).item() == pytest.approx(expected, rel=1e-5)


def test_lovasz_counts_errors_in_bins_and_changes_its_gradient_by_less_than_a_percent() -> None:
    """Beside sorting them, on sure answers, most of whose errors are small."""
    logits = (5 * torch.randn(2, CLASSES, 64, 64)).requires_grad_()
    target = torch.randint(0, CLASSES, (2, 64, 64))
    exact = sorted_lovasz(logits, target)
    (expected,) = torch.autograd.grad(exact, logits)
    loss = WeightedSum("lovasz", CLASSES)(logits, target)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-4)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (gradient - expected).norm() < 0.01 * expected.norm()


def test_lovasz_of_a_broken_network_is_not_a_number() -> None:
    logits, target = sample()
    assert WeightedSum("lovasz", CLASSES)(torch.full_like(logits, float("nan")), target).isnan()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_a_network_in_another_precision(name: str, dtype: torch.dtype) -> None:
    logits, target = sample()
    logits = logits.detach().to(dtype)
    loss = WeightedSum(name, CLASSES, class_weights=(0.3, 1.0, 3.3)).to(dtype)
    assert torch.equal(loss.class_weights, torch.tensor((0.3, 1.0, 3.3))), "rounded"
    value = loss(logits.requires_grad_(), target)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    exact = WeightedSum(name, CLASSES, class_weights=(0.3, 1.0, 3.3))(logits.detach().float(), target)
    torch.testing.assert_close(value.float(), exact)
    value.backward()
    assert logits.grad.isfinite().all()


def test_soft_targets_cost_what_their_shares_cost() -> None:
    logits, hard, other = torch.randn(5, 3), torch.randint(0, 3, (5,)), torch.randint(0, 3, (5,))
    soft = 0.7 * torch.eye(3)[hard] + 0.3 * torch.eye(3)[other]
    for smoothing in (0.0, 0.2):
        loss = WeightedSum("cross_entropy", 3, ignore_index=-100, label_smoothing=smoothing)
        torch.testing.assert_close(loss(logits, soft), 0.7 * loss(logits, hard) + 0.3 * loss(logits, other))


def test_mixing_needs_plain_cross_entropy() -> None:
    for options in ({"loss": "dice"}, {"class_weights": (1.0, 2.0)}):
        module = ClassificationModule("lenet5", "classifier", ("a", "b"), **options)
        with pytest.raises(ValueError, match="mixed images need --loss cross_entropy without --class-weights"):
            module.mix_batches(0.2, 0.0)


def main() -> None:
    """One of two ranks: gradients of its image, and the loss that it reports of a split."""
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", world_size=2, rank=rank)
    logits, targets = torch.load(folder / "samples", weights_only=True)
    of_split = [one[SEVEN][rank::2] for one in split()]
    found = {
        "logits": logits,
        "targets": targets,
        "gradients": gradients_of_rank(rank, logits, targets),
        "loss": torch.tensor(loss_of_split(EVERY_LOSS, *of_split, 3, class_weights=WEIGHTS), dtype=torch.float64),
    }
    torch.save(found, folder / f"found{rank}")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
