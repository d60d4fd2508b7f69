"""One picture of a data set as training sees it: `python experiments/show_data.py --data camvid --data-dir DIR`.

Takes run.py's flags and writes `OUT/show-DATA.png`: training samples after augmentation, with their masks; for each
class, the number of images that show it and its fraction of the pixels; mean and standard deviation of the colours, as
measured and as used for normalisation. Statistics are of at most 500 images as they are stored, before augmentation.
"""

import sys
from pathlib import Path

if not __package__:  # started as a file: import this checkout, not an installed copy, and not this folder's files
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from experiments.command_line.process import run_program
from experiments.command_line.run_config import parse


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code."""
    config, _ = parse(arguments, "show_data.py")

    def work() -> None:
        from experiments.analysis.data_picture import draw
        from experiments.training.build import build_data

        data = build_data(config)
        data.setup()
        split = data.splits[0]
        samples = getattr(data, split)
        path = Path(config.out) / f"show-{config.data}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        chosen = config.augmentation or "the data set's own"
        size = "x".join(map(str, data.image_size))
        title = f"{config.data}: {len(samples)} {split} samples at {size}, augmentation {chosen}"
        draw(data, samples, title, path)
        print(path)

    return run_program("show_data.py", work, "the same command draws it")


if __name__ == "__main__":
    sys.exit(main())
