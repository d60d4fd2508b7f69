"""The files of a benchmark: JSON, CSV and a picture; and what machine and versions it was measured with."""

import csv
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import matplotlib

from experiments.command_line.cores import available_cores, cpu_info, processor_name

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PACKAGES = ("torch", "torchvision", "numpy", "onnx", "onnxruntime", "openvino")
COLUMNS = (
    "runtime", "status", "file_mb", "score", "score_change", "max_difference", "p50_ms", "p95_ms", "fastest_round_ms",
    "slowest_round_ms", "images_per_s", "peak_memory_mb", "calls", "note",
)  # fmt: skip
EXTENSIONS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")


def machine() -> dict[str, Any]:
    """The processor, as far as it matters for speed."""
    flags = cpu_info().get("flags", "").split()
    return {
        "processor": processor_name(),
        "cores": available_cores(),
        "extensions": [name for name in EXTENSIONS if name in flags],
        "memory_mb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e6),
        "load": os.getloadavg()[0],
    }


def versions() -> dict[str, str]:
    """Versions of Python and of those `PACKAGES` that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def write_csv(rows: list[dict[str, Any]], path: Path) -> None:
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    part.replace(path)


def draw(rows: list[dict[str, Any]], score: str, title: str, path: Path) -> None:
    """Bars of images per second with the range of the rounds; hatched where the score does not hold."""
    measured = [row for row in rows if "p50_ms" in row]
    figure, ax = plt.subplots(figsize=(8.4, 0.8 + 0.45 * max(1, len(measured))), layout="constrained")
    for place, row in enumerate(measured):
        held = row["status"] == "ok"
        images = row["images_per_s"] * row["p50_ms"]  # per call, times 1000
        low, high = images / row["slowest_round_ms"], images / row["fastest_round_ms"]
        spread = [[max(0.0, row["images_per_s"] - low)], [max(0.0, high - row["images_per_s"])]]
        ax.barh(
            place, row["images_per_s"], xerr=spread, color="tab:blue" if held else "white", capsize=3,
            edgecolor="tab:blue" if held else "tab:red", hatch="" if held else "///",
        )  # fmt: skip
        text = f"{row['p50_ms']:.1f} ms, {score} {row['score']:.4f}"
        ax.annotate(text, (high, place), (6, 0), textcoords="offset points", va="center", fontsize=8)
    ax.set_yticks(range(len(measured)), [row["runtime"] for row in measured])
    ax.invert_yaxis()
    ax.set(xlabel="images per second (bars end at the median; hatched: the score does not hold)", title=title)
    ax.margins(x=0.3)
    ax.set_xlim(left=0)
    ax.spines[["top", "right"]].set_visible(False)
    part = path.with_name(path.name + ".part")
    figure.savefig(part, dpi=110, format="png")
    plt.close(figure)
    part.replace(path)
