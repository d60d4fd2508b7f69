"""Write a trained network as files to pass on: `python experiments/share.py runs/a`.

Leaves model.safetensors and config.json, which `load` and all programs take in the place of a run, and README.md, a
model card made from the run. `--push-to-hub USER/NAME` uploads them to the Hugging Face hub.
"""

import importlib.util
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # started as a file: import this checkout, not an installed copy, and not this folder's files
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from experiments.command_line.parser import Parser, flag, positional, settings_from
from experiments.command_line.process import run_program
from experiments.command_line.protocol_flags import out_problem


@dataclass
class ShareConfig:
    """The order of the fields is the order of `--help`."""

    run: str = positional("folder of a finished run", path=True)
    out: str | None = flag(None, "folder to write; default: RUN/share", path=True, group="files")
    push_to_hub: str | None = flag(
        None, "also upload to this repository of the Hugging Face hub, USER/NAME", group="hub"
    )
    private: bool = flag(False, "make the repository, if it is new, visible to its owner alone", group="hub")


def main(arguments: list[str] | None = None) -> int:
    """Parse first and import torch after. Returns the exit code."""
    parser = Parser("share.py", "Write a trained network as files to pass on, with a model card.")
    parser.add_settings(ShareConfig)
    config = settings_from(parser.parse_args(arguments), ShareConfig)
    problem = usage_problem(config)
    if problem:
        parser.error(problem)
    return run_program("share.py", lambda: share(config), "the same command starts again")


def usage_problem(config: ShareConfig) -> str | None:
    """What can be known to be wrong before torch is imported."""
    run = Path(config.run)
    if not run.is_dir():
        return f"{run}: no such folder; the card is made from a run folder"
    for file in ("config.yaml", "results.json", "checkpoints/best.ckpt"):
        if not (run / file).is_file():
            return f"{run} has no {file}; give the folder of a run that is finished"
    if out_problem(config.out or run):
        return out_problem(config.out or run)
    if config.push_to_hub is None:
        return "--private is for --push-to-hub" if config.private else None
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", config.push_to_hub):
        return f"--push-to-hub {config.push_to_hub}: give USER/NAME"
    if importlib.util.find_spec("huggingface_hub") is None:
        return "--push-to-hub needs huggingface_hub; pip install 'graft[hub]'"
    return None


def share(config: ShareConfig) -> int:
    from experiments.inference.card_curves import draw_curves
    from experiments.inference.model_card import model_card
    from experiments.inference.shared_network import CONFIG, WEIGHTS, is_another, write_shared
    from experiments.inference.trained import checkpoint_of, hyperparameters, module_of, preprocessing_of_older
    from experiments.run_files.atomic_file import write_atomically
    from experiments.run_files.json_file import read_json
    from experiments.run_files.read_run import read_config

    run = Path(config.run)
    out = Path(config.out) if config.out else run / "share"
    checkpoint = checkpoint_of(run)
    hparams = hyperparameters(checkpoint)
    hparams["preprocessing"] = hparams.get("preprocessing") or preprocessing_of_older(checkpoint)
    module = module_of(checkpoint, hparams)
    state = module.state_dict()
    results, settings = read_json(run / "results.json"), read_config(run / "config.yaml")
    if is_another(out, hparams, state):
        raise ValueError(f"--out {out} holds another network; give another --out, or remove the folder")
    out.mkdir(parents=True, exist_ok=True)
    write_shared(out, hparams, state, module.temperature)
    pictures = ["curves.png"] if draw_curves(run / "metrics.csv", out / "curves.png") else []
    if (run / "predictions.png").is_file():
        shutil.copyfile(run / "predictions.png", out / "predictions.png")
        pictures.append("predictions.png")
    card = out / "README.md"
    if card.is_file():
        print(f"{card} is kept as it is, because you may have edited it; delete it to have it made again", flush=True)
    else:
        write_atomically(card, model_card(run.resolve().name, hparams, results, settings, pictures, module.temperature))
    files = [WEIGHTS, CONFIG, card.name, *pictures]
    print(f"{out}/: {' '.join(files)}; the licence is left to you: state it in {card.name}", flush=True)
    if config.push_to_hub is not None:
        from experiments.inference.hub import push

        print(f"uploading {(out / WEIGHTS).stat().st_size / 1e6:.1f} MB to {config.push_to_hub}", flush=True)
        print(push(out, files, config.push_to_hub, config.private), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
