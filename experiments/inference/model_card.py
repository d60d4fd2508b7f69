"""README.md of a shared network: a model card made from what its run has recorded. Only the licence is left open."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from experiments.run_files.run_command import command

PIPELINES = {"segmentation": "image-segmentation", "classification": "image-classification"}
"""Hugging Face's names of the tasks."""
SCORE_NAMES = {"miou": "mIoU", "iou": "IoU", "pixel_accuracy": "pixel accuracy", "top1": "top-1", "top5": "top-5"}


def model_card(
    name: str,
    hparams: Mapping[str, Any],
    results: Mapping[str, Any],
    settings: Mapping[str, Any],
    files: Sequence[str],
    temperature: float = 1.0,
) -> str:
    """The card as Markdown.

    Args:
        name: of the network, the title.
        hparams: the arguments of its module.
        results: what results.json holds.
        settings: what config.yaml holds.
        files: the names of the pictures that lie beside the card.
        temperature: what its logits are divided by.
    """
    protocol, training = results["protocol"], results.get("training", {})
    task = protocol["task"]
    parts = [
        front_matter(task, hparams, protocol),
        f"# {name}\n",
        f"{hparams['backbone']} + {hparams['head']}, trained for {task} of {len(hparams['class_names'])} classes on "
        f"{protocol['data']} with Graft {results.get('versions', {}).get('graft', '')}. This card was made from the "
        "records of the run.\n",
        "**Licence: left to the author**, who has not stated one yet. Without a licence nobody may use these files.\n",
        how_to_load(task),
        "## Scores\n",
        scores_table(results["scores"]),
        class_table(results["scores"], hparams),
        protocol_list(protocol, results.get("crf")),
        *(f"![{title}]({file})\n" for file, title in PICTURES.items() if file in files),
        "## Training\n",
        f"```bash\n{command(settings)}\n```\n",
        training_list(results, training, settings),
        "## Preprocessing\n",
        preprocessing_list(hparams["preprocessing"], temperature),
        "## Intended use\n",
        "Left to the author. The scores above hold for images like those of the data set; nothing was measured on "
        "others.\n",
    ]
    return "\n".join(part for part in parts if part)


PICTURES = {"curves.png": "Loss and score during training", "predictions.png": "Images, truth and predictions"}
"""Pictures that may lie beside the card, and their titles."""


def front_matter(task: str, hparams: Mapping[str, Any], protocol: Mapping[str, Any]) -> str:
    """What the Hugging Face hub reads at the top of a card."""
    content = {
        "library_name": "graft",
        "pipeline_tag": PIPELINES[task],
        "tags": ["graft", hparams["backbone"], hparams["head"], task, protocol["data"]],
    }
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    return f"---\n{text}# license: for the author to fill in\n---\n"


def how_to_load(task: str) -> str:
    result = (
        "labels  # int64 (H, W), the picture's own size" if task == "segmentation" else "top(5)  # the likely classes"
    )
    lines = [
        "from experiments.inference.trained import load",
        "",
        'network = load("FOLDER")  # with model.safetensors and config.json; nothing in them can run code',
        'result = network("street.jpg")  # a path, PIL image, uint8 array (H, W, 3) or tensor (3, H, W)',
        f"result.{result}",
        'result.overlay().save("street.png")',
    ]
    return (
        "## Use\n\n```python\n" + "\n".join(lines) + "\n```\n\n"
        "FOLDER is the one that holds this file; from a hub, what `huggingface_hub.snapshot_download` returns. All "
        "programs of Graft take it in the place of a run: `python experiments/predict.py FOLDER photos/`.\n"
    )


def scores_table(scores: Mapping[str, Mapping[str, float | None]]) -> str:
    """A row for each score, a column for each split."""
    names = [name for name in next(iter(scores.values())) if "/" not in name]
    rows = [[SCORE_NAMES.get(name, name), *(number(scores[split].get(name)) for split in scores)] for name in names]
    return table(["score", *scores], rows)


def class_table(scores: Mapping[str, Mapping[str, float | None]], hparams: Mapping[str, Any]) -> str:
    """A row for each class: its colour, and the scores that the run recorded of it."""
    colours = hparams["preprocessing"]["colours"]
    kinds = list(dict.fromkeys(name.split("/")[0] for name in next(iter(scores.values())) if "/" in name))
    columns = [(split, kind) for kind in kinds for split in scores]
    rows = [
        [str(index), cell(one), "#" + "".join(f"{value:02x}" for value in colours[index])]
        + [number(scores[split].get(f"{kind}/{one}")) for split, kind in columns]
        for index, one in enumerate(hparams["class_names"])
    ]
    titles = [f"{SCORE_NAMES.get(kind, kind)} {split}" for split, kind in columns]
    return table(["label", "class", "colour", *titles], rows)


def protocol_list(protocol: Mapping[str, Any], crf: Mapping[str, Any] | None) -> str:
    """How the scores were taken."""
    splits = ", ".join(f"{count} {split}" for split, count in protocol["splits"].items())
    skipped = {split: count for split, count in protocol.get("skipped", {}).items() if count}
    lines = {
        "data": f"{protocol['data']}: {splits} images (fingerprint `{protocol['data_fingerprint']}`)",
        "skipped": ", ".join(f"{count} unreadable {split} images" for split, count in skipped.items()),
        "image size": " x ".join(map(str, protocol["image_size"])),
        "ignored label": str(protocol["ignore_index"]) if protocol["task"] == "segmentation" else "",
        "CRF": "none"
        if crf is None
        else f"{crf['mode']}, scores named _crf"
        if protocol["task"] == "segmentation"
        else "",
        "network": "the checkpoint with the best validation score",
    }
    return bullets(lines)


def training_list(results: Mapping[str, Any], training: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Hardware, time, cost and versions."""
    seconds = results.get("wall_time_s")
    peak = results.get("peak_memory_mib")
    processes = training.get("processes", 1)
    lines = {
        "hardware": f"{processes} x {training['device']} ({training.get('accelerator')})"
        if "device" in training
        else "",
        "time": f"{hours(seconds)}, best after epoch {results['best_epoch']} of {settings.get('epochs')}"
        if seconds
        else "",
        "precision": f"{training.get('precision')}" if "precision" in training else "",
        "images per step": str(training.get("global_batch", "")),
        "peak memory": f"{peak:,.0f} MiB" if peak else "",
        "size": f"{results['params']:,} parameters" if results.get("params") else "",
        "cost": f"{results['gmacs']:.3g} GMACs at the image size" if results.get("gmacs") else "",
        "seed": str(results["protocol"].get("seed", "")),
        "versions": ", ".join(f"{name} {version}" for name, version in results.get("versions", {}).items()),
    }
    return bullets(lines)


def preprocessing_list(preprocessing: Mapping[str, Any], temperature: float) -> str:
    size = " x ".join(map(str, preprocessing["size"]))
    rules = {"own": "images keep their size", "stretch": f"images are resized to {size}"}
    rules["within"] = f"images are resized in proportion, within sides of {size}"
    rules["centre_crop"] = f"the shorter side is resized to 8/7 of {size}, and the centre is cut out"
    lines = {
        "size (H x W)": rules[preprocessing["size_rule"]],
        "mean": ", ".join(f"{value:g}" for value in preprocessing["mean"]),
        "standard deviation": ", ".join(f"{value:g}" for value in preprocessing["std"]),
        "temperature": f"{temperature:.4g}, fitted on the validation split; logits are divided by it"
        if temperature != 1
        else "",
    }
    return bullets(lines) + "\n`load` does this by itself; mean and standard deviation are of RGB in [0, 1].\n"


def hours(seconds: float) -> str:
    """A duration as h:mm:ss."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d} h"


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def cell(text: str) -> str:
    """A text of the data, such as a class name, that changes nothing in a table of Markdown."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", " ".join(text.split()))


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def bullets(lines: Mapping[str, str]) -> str:
    return "".join(f"- {name}: {text}\n" for name, text in lines.items() if text)
