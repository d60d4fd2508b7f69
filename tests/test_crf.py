"""The fully connected CRF: against dense filtering and pydensecrf, its gradients, and what it refuses."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from heads.crf import CLIP, PRESETS, CRFSettings, DenseCRF, _softmax

SETTINGS = CRFSettings(w1=4, sigma_alpha=20, sigma_beta=20, w2=3, sigma_gamma=1.5, iterations=5)


def scene(
    height: int = 24, width: int = 32, labels: int = 4, seed: int = 0, channels: int = 3
) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy logits (1, C, H, W), an image (1, K, H, W) whose patches have the labels' colours, and labels (H, W)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, labels, (1, 1, 3, 4), generator=generator)
    truth = nn.functional.interpolate(coarse.double(), (height, width))[0, 0].long()
    colours = torch.randint(20, 236, (labels, channels), generator=generator)
    image = colours[truth] + torch.randint(-15, 16, (height, width, channels), generator=generator)
    logits = 1.5 * nn.functional.one_hot(truth, labels) + torch.randn(height, width, labels, generator=generator)
    return logits.permute(2, 0, 1)[None].float(), image.clamp(0, 255).permute(2, 0, 1)[None].to(torch.uint8), truth


def dense(logits: Tensor, image: Tensor, s: CRFSettings, compatibility: Tensor | None = None) -> Tensor:
    """Mean field over all pairs of pixels, straight from the paper."""
    labels, height, width = logits.shape[1:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    position = torch.stack((x, y), -1).reshape(-1, 2).double()
    colour = image[0].flatten(1).T.double()
    potts = 1 - torch.eye(labels, dtype=torch.float64)
    penalty = potts if compatibility is None else compatibility.double()
    unary = logits.softmax(1).clamp(min=CLIP).log()[0].flatten(1).T.double()
    total = torch.zeros(len(position), len(position), dtype=torch.float64)
    for weight, features in (
        (s.w1, torch.cat((position / s.sigma_alpha, colour / s.sigma_beta), 1)),
        (s.w2, position / s.sigma_gamma),
    ):
        kernel = torch.exp(-0.5 * torch.cdist(features, features) ** 2)
        root = kernel.sum(1).rsqrt()
        total += weight * root[:, None] * kernel * root
    q = unary.softmax(1)
    for _ in range(s.iterations):
        q = (unary - (total @ q) @ penalty.T).softmax(1)
    return q.T.reshape(labels, height, width)


def asymmetric(labels: int) -> Tensor:
    return (1 - torch.eye(labels)) * torch.linspace(0.5, 1.5, labels * labels).view(labels, labels)


@pytest.mark.parametrize("potts", [True, False])
def test_agrees_with_dense_mean_field(potts: bool) -> None:
    logits, image, truth = scene()
    compatibility = None if potts else asymmetric(4)
    refined = DenseCRF(SETTINGS, compatibility=compatibility)(logits, image)[0]
    expected = dense(logits, image, SETTINGS, compatibility)
    assert (refined.argmax(0) == expected.argmax(0)).float().mean() > 0.99
    assert (refined - expected).abs().mean() < 0.01
    before, after = ((p.argmax(0) == truth).float().mean() for p in (logits[0], refined))
    assert not potts or after > before + 0.1  # it cleans noise up


def test_only_the_position_kernel_is_exact_mean_field() -> None:
    logits, image, _ = scene()
    settings = replace(SETTINGS, w1=0)
    expected = dense(logits, image, settings)
    torch.testing.assert_close(DenseCRF(settings)(logits.double(), image)[0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("normalization", "spatial"), [("symmetric", "lattice"), ("before", "lattice"), ("symmetric", "exact")]
)
@pytest.mark.parametrize("potts", [True, False])
def test_agrees_with_pydensecrf(normalization: Any, spatial: Any, potts: bool) -> None:
    """Its recorded answers: each pixel's label, and the beliefs of every sixth pixel along both sides.

    They are those of pydensecrf2 1.1's DenseCRF2D for `scene(45, 60)` and `SETTINGS`: `setUnaryEnergy` with the negated
    logarithms of the clipped probabilities, `addPairwiseBilateral` and `addPairwiseGaussian` with the weights (Potts)
    or the weights times the symmetric matrix below, NORMALIZE_SYMMETRIC or NORMALIZE_BEFORE, `inference(5)`.
    """
    answers = np.load(Path(__file__).with_name("pydensecrf_answers.npz"))
    logits, image, _ = scene(45, 60)
    for name, recorded in (("logits", logits), ("image", image)):
        torch.testing.assert_close(recorded[0, :, ::6, ::6], torch.from_numpy(answers[name]))
    case = f"{normalization}_{'potts' if potts else 'matrix'}"
    labels, expected = (torch.from_numpy(answers[name]) for name in (f"{case}_labels", case))
    matrix = (asymmetric(4) + asymmetric(4).T) / 2  # pydensecrf takes symmetric ones alone
    settings = replace(SETTINGS, normalization=normalization)
    refined = DenseCRF(settings, compatibility=None if potts else matrix, spatial=spatial)(logits, image)[0]
    assert (refined.argmax(0) == labels).float().mean() > (0.9999 if spatial == "lattice" else 0.99)
    assert (refined[:, ::6, ::6] - expected).abs().mean() < (1e-6 if spatial == "lattice" else 1e-2)


def test_probabilities_and_logits_give_the_same() -> None:
    logits, image, _ = scene()
    crf = DenseCRF(SETTINGS)
    torch.testing.assert_close(crf(logits.softmax(1), image, from_logits=False), crf(logits, image))


def test_a_batch_gives_what_its_images_give() -> None:
    first, second = scene(seed=1), scene(seed=2)
    crf = DenseCRF(SETTINGS)
    both = crf(torch.cat((first[0], second[0])), torch.cat((first[1], second[1])))
    alone = torch.cat([crf(logits, image) for logits, image, _ in (first, second)])
    assert torch.equal(both, alone)
    assert not torch.allclose(both[0], both[1], atol=0.1)


def test_kernels_are_reused_by_other_weights() -> None:
    logits, image, _ = scene()
    kernels = DenseCRF(SETTINGS).build(image)
    other = DenseCRF(replace(SETTINGS, w1=1, w2=7, iterations=2))
    assert torch.equal(other(logits, kernels), other(logits, image))
    with pytest.raises(ValueError, match="built with other standard deviations"):
        DenseCRF(replace(SETTINGS, sigma_beta=21))(logits, kernels)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_of_any_channel_count(channels: int) -> None:
    logits, image, truth = scene(channels=channels)
    refined = DenseCRF(SETTINGS)(logits, image)
    assert (refined[0].argmax(0) == truth).float().mean() > (logits[0].argmax(0) == truth).float().mean()
    torch.testing.assert_close(DenseCRF(SETTINGS)(logits, image.float()), refined)


@pytest.mark.parametrize("budget", [1, 24 * 32 * 4 * 15])
def test_a_small_budget_gives_the_same(budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One label at a time, or two; and several blocks of rows."""
    logits, image, _ = scene()
    crf = DenseCRF(SETTINGS)
    expected = crf(logits, image)
    monkeypatch.setattr("heads.crf.BLOCK", 5 * 32 * 4)
    tiled = DenseCRF(SETTINGS, memory_budget=budget)
    q, kernels = torch.zeros(24 * 32, 4), tiled.build(image)
    assert len(list(tiled._tiles(q, kernels[0]))) > 1
    torch.testing.assert_close(tiled(logits, image), expected)
    torch.testing.assert_close(crf(logits, image), expected)


def test_learning_gives_what_inference_gives() -> None:
    logits, image, _ = scene()
    crf = DenseCRF(SETTINGS, trainable=True, num_classes=4)
    learned = crf(logits, image)
    assert learned.requires_grad
    torch.testing.assert_close(learned, DenseCRF(SETTINGS)(logits, image))
    with torch.autocast("cpu"):
        torch.testing.assert_close(crf(logits, image), learned)


def test_gradients() -> None:
    """Gradients of the scores, both weights and the compatibility equal numerical ones in float64."""
    logits, image, _ = scene(5, 6, labels=3)
    crf = DenseCRF(replace(SETTINGS, sigma_beta=60, sigma_alpha=5, iterations=3), compatibility=asymmetric(3)).double()

    def refine(scores: Tensor, weights: Tensor, compatibility: Tensor) -> Tensor:
        parameters = {"weights": weights, "compatibility": compatibility}
        return torch.func.functional_call(crf, parameters, (scores, image))

    inputs = (logits.double(), crf.weights, asymmetric(3).double())
    assert torch.autograd.gradcheck(refine, [x.clone().requires_grad_() for x in inputs])


def test_learns_its_weights_from_data_made_with_known_ones() -> None:
    logits, image, _ = scene(labels=3)
    settings = replace(SETTINGS, w1=1.2, w2=0.6, iterations=3)
    target = DenseCRF(settings)(logits, image)
    crf = DenseCRF(replace(settings, w1=0.3, w2=1.5), trainable=True)
    kernels = crf.build(image)
    assert [name for name, _ in crf.named_parameters()] == ["weights"]
    optimizer = torch.optim.LBFGS(crf.parameters(), max_iter=40, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = nn.functional.kl_div(crf(logits, kernels).log(), target, reduction="batchmean")
        value.backward()
        return value

    optimizer.step(loss)
    torch.testing.assert_close(crf.weights.detach(), torch.tensor([1.2, 0.6]), rtol=0, atol=0.01)


def test_one_label_is_certain() -> None:
    _, image, _ = scene()
    assert torch.equal(DenseCRF()(torch.randn(1, 1, 24, 32), image), torch.ones(1, 1, 24, 32))


def test_one_pixel_hears_itself() -> None:
    """Both normalised kernels are 1, so the message is 7 q."""
    log = torch.tensor([0.6, 0.4]).log()
    q = log.exp()
    for _ in range(10):
        q = (log + 7 * q).softmax(0)
    refined = DenseCRF()(log.view(1, 2, 1, 1), torch.full((1, 3, 1, 1), 77))
    torch.testing.assert_close(refined.flatten(), q)


def test_constant_image_agrees_with_dense_mean_field() -> None:
    logits, image, _ = scene()
    image = torch.full_like(image, 200)
    refined = DenseCRF(SETTINGS)(logits, image)[0]
    assert (refined - dense(logits, image, SETTINGS)).abs().mean() < 0.01


def test_no_iterations_return_the_scores() -> None:
    logits, image, _ = scene()
    torch.testing.assert_close(DenseCRF(replace(SETTINGS, iterations=0))(logits, image), logits.softmax(1))


def test_the_default_is_deeplabv2s_resnet_setting() -> None:
    """Compared by its answer, so that neither the order nor the names of the fields can change unnoticed."""
    logits, image, _ = scene(labels=3)
    named = CRFSettings(iterations=10, w2=3, w1=4, sigma_gamma=1, sigma_beta=3, sigma_alpha=67)
    refined = DenseCRF()(logits, image)
    torch.testing.assert_close(refined, DenseCRF(named)(logits, image))
    assert not torch.allclose(refined, DenseCRF(PRESETS["pydensecrf"])(logits, image), atol=1e-3)


@pytest.mark.parametrize("weights_learn", [False, True])
def test_a_confident_mistake_gets_a_gradient(weights_learn: bool) -> None:
    """A pixel that gives the truth a probability of 2e-9, through the CRF and the logarithm behind it."""
    logits = torch.tensor([20.0, 0.0]).view(1, 2, 1, 1).requires_grad_()
    image = torch.full((1, 3, 1, 1), 77)
    crf = DenseCRF(replace(SETTINGS, w1=0.1, w2=0.1), trainable=weights_learn)
    said = crf(logits, image, log=True)
    nn.functional.cross_entropy(said, torch.ones(1, 1, 1, dtype=torch.long)).backward()
    assert logits.grad[0, 1].item() < -0.5
    assert logits.grad[0, 0].item() > 0.5


def test_many_certain_pixels_stay_finite() -> None:
    """Where beliefs underflow in float32, their logarithms and gradients do not."""
    _, image, truth = scene()
    logits = (200.0 * nn.functional.one_hot((truth + 1) % 4, 4)).permute(2, 0, 1)[None].requires_grad_()
    said = DenseCRF(SETTINGS, trainable=True)(logits, image, log=True)
    nn.functional.cross_entropy(said, truth[None]).backward()
    assert said.isfinite().all()
    assert logits.grad.isfinite().all()
    own = logits.grad.gather(1, truth[None, None])
    assert (own < 0).float().mean() > 0.9


def test_logarithms_are_those_of_the_probabilities() -> None:
    logits, image, _ = scene()
    for crf in (DenseCRF(SETTINGS), DenseCRF(SETTINGS, trainable=True)):
        torch.testing.assert_close(crf(logits, image, log=True).exp(), crf(logits, image))


def test_faster_matrix_products_change_nothing() -> None:
    """On CPUs and GPUs that have them, "medium" multiplies in bfloat16; the setting is left as it was."""
    logits, image, _ = scene()
    crf = DenseCRF(SETTINGS, compatibility=asymmetric(4))
    expected, seen = crf(logits, image), []
    product = torch.addmm

    def watched(*args: Any, **kwargs: Any) -> Tensor:
        seen.append(torch.get_float32_matmul_precision())
        return product(*args, **kwargs)

    torch.set_float32_matmul_precision("medium")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "addmm", watched)
            assert torch.equal(crf(logits, image), expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert set(seen) == {"highest"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma_alpha": 0}, "sigma_alpha is 0"),
        ({"sigma_beta": -3}, "sigma_beta is -3"),
        ({"sigma_gamma": float("nan")}, "sigma_gamma is nan"),
        ({"w1": float("inf")}, "w1 is inf"),
        ({"iterations": -1}, "iterations is -1"),
        ({"normalization": "none"}, "normalization is 'none'; choose symmetric, before or after"),
    ],
)
def test_refuses_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CRFSettings(**options)


def test_refuses_bad_input() -> None:
    logits, image, _ = scene()
    crf = DenseCRF(SETTINGS)
    nan, hot = logits.clone(), image.float()
    nan[0, 1, 2, 3] = float("nan")
    hot[0, 0, 0, 0] = float("inf")
    cases: list[tuple[Tensor, Tensor, dict[str, bool], str]] = [
        (nan, image, {}, "scores hold NaN"),
        (logits, hot, {}, "images hold NaN or infinity"),
        (logits[..., 1:], image, {}, "1 score maps of 24 x 31 pixels do not match the images, 24 x 32"),
        (logits.expand(2, -1, -1, -1), image, {}, "2 score maps of 24 x 32 pixels do not match the images, 24 x 32"),
        (logits[0], image, {}, r"scores have the shape \(4, 24, 32\)"),
        (logits, image[0], {}, r"images have the shape \(3, 24, 32\)"),
        (logits[..., :0], image, {}, r"scores have the shape \(1, 4, 24, 0\)"),
        (logits, image, {"from_logits": False}, "are not probabilities"),
    ]
    for scores, images, options, message in cases:
        with pytest.raises(ValueError, match=message) as caught:
            crf(scores, images, **options)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="compatibility is 3 x 3, but the scores have 4 labels"):
        DenseCRF(SETTINGS, compatibility=asymmetric(3))(logits, image)
    with pytest.raises(ValueError, match="spatial is 'fft'; choose exact or lattice"):
        DenseCRF(SETTINGS, spatial="fft")  # type: ignore[arg-type]


def test_what_backward_keeps_does_not_grow_with_the_lattice() -> None:
    """A filter saves nothing: an iteration keeps a handful of arrays of the scores' size."""
    logits, image, _ = scene()
    kept = 0

    def count(x: Tensor) -> Tensor:
        nonlocal kept
        kept += x.numel()
        return x

    crf = DenseCRF(SETTINGS, trainable=True)
    kernels = crf.build(image)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
        crf(logits.requires_grad_(), kernels)
    assert kept <= (3 * SETTINGS.iterations + 5) * logits.numel()


@pytest.mark.parametrize("scale", [1, 1000, -1000])
def test_softmax_of_logits_that_overflow(scale: float) -> None:
    logits = torch.randn(50, 4) + scale
    out = torch.empty_like(logits)
    _softmax(logits, out)
    torch.testing.assert_close(out, logits.softmax(1))
