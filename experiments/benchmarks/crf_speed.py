"""The fully connected CRF against pydensecrf: agreement, time and memory.

    pip install -e .[bench]
    python experiments/benchmarks/crf_speed.py --quick --readme     agreement and speed at 500 x 375 x 21, 10 iterations
    python experiments/benchmarks/crf_speed.py                      and growth to 2048 x 1024 x 19, and peak memory

Run it with nothing else running. Both libraries get the same image and unary and are timed in turns, from arrays in
memory to probabilities: the lattice is built every time. pydensecrf has one thread, whatever the machine; PyTorch gets
`--threads`. The first picture is scikit-learn's china.jpg with colour clusters for labels; `--image` and `--annotation`
(label indices, 255 for none) add others to the comparison.
"""

import argparse
import multiprocessing
import statistics
import sys
import time
from pathlib import Path

if not __package__:  # started as a file: import this checkout, not an installed copy, and not this folder's files
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from experiments.command_line.process import keep_freed_memory
from experiments.command_line.progress import with_progress
from experiments.inference.benchmark_files import machine
from experiments.run_files.generated_part import replace_part
from heads.crf import CLIP, PRESETS, CRFSettings, DenseCRF

SETTINGS = PRESETS["deeplabv2_resnet101"]
SIZES = ((256, 192), (500, 375), (1000, 750), (1500, 1000), (2048, 1024))  # width, height
LABELS = (2, 5, 10, 21, 40)
ITERATIONS = (1, 5, 10, 20)
README = Path(__file__).resolve().parents[2] / "heads" / "README.md"
PLOT = Path(__file__).resolve().parents[1] / "images" / "crf_speed.png"


def default_picture() -> tuple[Image.Image, Image.Image]:
    """An image and a label map."""
    from sklearn.cluster import KMeans
    from sklearn.datasets import load_sample_image

    pixels = load_sample_image("china.jpg")
    small = np.asarray(Image.fromarray(pixels).resize((80, 53), Image.Resampling.BOX)).reshape(-1, 3)
    clusters = KMeans(8, n_init=1, random_state=0).fit_predict(small).reshape(53, 80).astype(np.uint8)
    return Image.fromarray(pixels), Image.fromarray(clusters)


def pictures_of(arguments: argparse.Namespace) -> dict[str, tuple[Image.Image, Image.Image]]:
    """Images and label maps by name."""
    found = {"scikit-learn's china.jpg": default_picture()}
    for image, annotation in zip(arguments.image, arguments.annotation, strict=True):
        found[image.name] = (Image.open(image).convert("RGB"), Image.open(annotation))
    return found


def case(image: Image.Image, annotation: Image.Image, width: int, height: int, labels: int) -> tuple[Tensor, Tensor]:
    """The image (1, 3, H, W) and probabilities (1, C, H, W) as from a network of stride 8: blurred and noisy."""
    pixels = np.array(image.resize((width, height), Image.Resampling.BICUBIC))
    truth = torch.from_numpy(np.array(annotation.resize((width, height), Image.Resampling.NEAREST))).long()
    truth = torch.where(truth >= labels, truth % labels if labels < 8 else 0, truth)
    coarse = F.avg_pool2d(6 * F.one_hot(truth, labels).permute(2, 0, 1)[None].float(), 8, ceil_mode=True)
    coarse += 1.5 * torch.randn(coarse.shape, generator=torch.Generator().manual_seed(0))
    logits = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
    return torch.from_numpy(pixels).permute(2, 0, 1)[None], logits.softmax(1)


def theirs(image: Tensor, probabilities: Tensor, settings: CRFSettings) -> np.ndarray:
    """pydensecrf, from arrays to probabilities (C, H, W)."""
    from pydensecrf.densecrf import DenseCRF2D

    labels, height, width = probabilities.shape[1:]
    crf = DenseCRF2D(width, height, labels)
    crf.setUnaryEnergy(np.ascontiguousarray(-np.log(probabilities[0].flatten(1).numpy().clip(CLIP))))
    crf.addPairwiseGaussian(settings.sigma_gamma, settings.w2)
    pixels = np.ascontiguousarray(image[0].permute(1, 2, 0).numpy())
    crf.addPairwiseBilateral(settings.sigma_alpha, settings.sigma_beta, pixels, settings.w1)
    return np.array(crf.inference(settings.iterations)).reshape(labels, height, width)


@torch.no_grad()
def ours(image: Tensor, probabilities: Tensor, settings: CRFSettings, **options: object) -> np.ndarray:
    """This CRF, from arrays to probabilities (C, H, W)."""
    return DenseCRF(settings, **options)(probabilities, image, from_logits=False)[0].numpy()  # type: ignore[arg-type]


def timed(image: Tensor, probabilities: Tensor, settings: CRFSettings, repeats: int) -> tuple[float, float]:
    """Median seconds of pydensecrf and of this CRF, in turns, after one run of each."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats + 1):
        for function, taken in zip((theirs, ours), seconds, strict=True):
            start = time.perf_counter()
            function(image, probabilities, settings)
            if repeat or repeats == 0:
                taken.append(time.perf_counter() - start)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def compare(name: str, image: Image.Image, annotation: Image.Image, repeats: int) -> str:
    """Speed and agreement at 500 x 375, 21 labels, 10 iterations, as a row of the README's table."""
    pixels, probabilities = case(image, annotation, 500, 375, 21)
    expected = theirs(pixels, probabilities, SETTINGS)
    agreement = []
    for spatial in ("exact", "lattice"):
        got = ours(pixels, probabilities, SETTINGS, spatial=spatial)
        same = (got.argmax(0) == expected.argmax(0)).mean()
        agreement.append(f"{same:.3%}, {np.abs(got - expected).mean():.1e}")
    slow, fast = timed(pixels, probabilities, SETTINGS, repeats)
    return f"| {name} | {slow:.2f} s | {fast:.2f} s | **{slow / fast:.2f}** | {' | '.join(agreement)} |"


def comparison(pictures: dict[str, tuple[Image.Image, Image.Image]], repeats: int) -> str:
    """The table of all pictures, with the machine."""
    rows = [
        compare(name, *picture, repeats) for name, picture in with_progress(pictures.items(), len(pictures), "pictures")
    ]
    return "\n".join(
        [
            f"{machine()['processor']}, {torch.get_num_threads()} threads, torch {torch.__version__}; medians of "
            f"{repeats}.",
            "",
            "| photograph | pydensecrf | this CRF | ratio | same label, mean difference: default | "
            'with `spatial="lattice"` |',
            "|---|--:|--:|--:|---|---|",
            *rows,
        ]
    )


def growth(image: Image.Image, annotation: Image.Image) -> None:
    """Time against pixels (19 labels), labels and iterations (500 x 375), as a table and a plot."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    runs: tuple[tuple[str, list[tuple[float, tuple[int, int, int, int]]]], ...] = (
        ("megapixels, 19 labels", [(w * h / 1e6, (w, h, 19, 10)) for w, h in SIZES]),
        ("labels, 500 x 375", [(n, (500, 375, n, 10)) for n in LABELS]),
        ("iterations, 500 x 375, 21 labels", [(n, (500, 375, 21, n)) for n in ITERATIONS]),
    )
    print("| width | height | labels | iterations | pydensecrf, s | ours, s | ratio |\n|--|--|--|--|--|--|--|")
    for panel, (title, points) in zip(panels, runs, strict=True):
        times = []
        for _, (width, height, labels, iterations) in points:
            settings = CRFSettings(iterations=iterations)
            slow, fast = timed(*case(image, annotation, width, height, labels), settings, 0 if width > 500 else 2)
            print(
                f"| {width} | {height} | {labels} | {iterations} | {slow:.2f} | {fast:.2f} | {slow / fast:.1f} |",
                flush=True,
            )
            times.append((slow, fast))
        for name, column in (("pydensecrf", 0), ("this CRF", 1)):
            panel.plot([x for x, _ in points], [t[column] for t in times], "o-", label=name)
        panel.set(xlabel=title, ylabel="seconds", ylim=(0, None))
    panels[0].legend()
    figure.savefig(PLOT, dpi=100)
    print(f"plot: {PLOT}")


def peak(image: np.ndarray, probabilities: np.ndarray, budget: int | None) -> float:
    """Most MiB that one call takes beyond what is resident before it, in a process of its own (Linux)."""
    before = resident("VmRSS")
    ours(torch.from_numpy(image), torch.from_numpy(probabilities), CRFSettings(iterations=2), memory_budget=budget)
    return resident("VmHWM") - before


def resident(field: str) -> float:
    """This process's MiB now (VmRSS) or at most (VmHWM); unlike ru_maxrss, not inherited from its parent."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(field + ":")[1].split()[0]) / 2**10


def memory(image: Image.Image, annotation: Image.Image) -> None:
    """Peak memory beyond the input, by labels and budget."""
    print("| width | height | labels | budget, MiB | peak beyond the input, MiB |\n|--|--|--|--|--|")
    for width, height, labels, budget in (
        (1000, 750, 2, None),
        (1000, 750, 19, None),
        (2048, 1024, 2, None),
        (2048, 1024, 19, None),
        (2048, 1024, 19, 2**26),
    ):
        arrays = [x.numpy() for x in case(image, annotation, width, height, labels)]
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            taken = pool.apply(peak, (*arrays, budget))
        given = "none" if budget is None else f"{budget / 2**20:.0f}"
        print(f"| {width} | {height} | {labels} | {given} | {taken:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the comparison at 500 x 375 alone")
    parser.add_argument("--memory", action="store_true", help="peak memory alone")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--image", type=Path, nargs="+", default=[])
    parser.add_argument("--annotation", type=Path, nargs="+", default=[])
    parser.add_argument("--readme", action="store_true", help="write the comparison into heads/README.md")
    arguments = parser.parse_args()
    if len(arguments.image) != len(arguments.annotation):
        sys.exit(f"{len(arguments.image)} of --image and {len(arguments.annotation)} of --annotation; they go together")
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()  # as programs do that use the CRF; for both libraries
    pictures = pictures_of(arguments)
    first = next(iter(pictures.values()))
    if not arguments.memory:
        text = comparison(pictures, arguments.repeats)
        print(text)
        if arguments.readme:
            replace_part(README, "crf_speed.py", text)
        if not arguments.quick:
            growth(*first)
    if arguments.memory or not arguments.quick:
        memory(*first)


if __name__ == "__main__":
    main()
