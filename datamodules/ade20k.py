"""ADE20K: Scene Parsing through ADE20K Dataset. Zhou, Zhao, Puig, Fidler, Barriuso, Torralba 2017, CVPR.

The 150 classes of the scene parsing challenge of 2016, 20,210 training and 2,000 validation images. Layout, as
published: `images/{training,validation}/*.jpg` and `annotations/{training,validation}/*.png`, possibly in a folder
`ADEChallengeData2016`. Masks hold 1-150; 0 (other) is ignored. Of a class's synonyms the first is its name.
"""

from pathlib import Path
from typing import ClassVar

from datamodules.base import IGNORE_INDEX, GraftDataModule, Source, Task
from datamodules.errors import DataError
from datamodules.files import MaskedImages
from datamodules.pairing import pair

# fmt: off
CLASSES = (
    "wall", "building", "sky", "floor", "tree", "ceiling", "road", "bed", "windowpane", "grass", "cabinet", "sidewalk",
    "person", "earth", "door", "table", "mountain", "plant", "curtain", "chair", "car", "water", "painting", "sofa",
    "shelf", "house", "sea", "mirror", "rug", "field", "armchair", "seat", "fence", "desk", "rock", "wardrobe", "lamp",
    "bathtub", "railing", "cushion", "base", "box", "column", "signboard", "chest of drawers", "counter", "sand",
    "sink", "skyscraper", "fireplace", "refrigerator", "grandstand", "path", "stairs", "runway", "case", "pool table",
    "pillow", "screen door", "stairway", "river", "bridge", "bookcase", "blind", "coffee table", "toilet", "flower",
    "book", "hill", "bench", "countertop", "stove", "palm", "kitchen island", "computer", "swivel chair", "boat",
    "bar", "arcade machine", "hovel", "bus", "towel", "light", "truck", "tower", "chandelier", "awning", "streetlight",
    "booth", "television", "airplane", "dirt track", "apparel", "pole", "land", "bannister", "escalator", "ottoman",
    "bottle", "buffet", "poster", "stage", "van", "ship", "fountain", "conveyer belt", "canopy", "washer", "plaything",
    "swimming pool", "stool", "barrel", "basket", "waterfall", "tent", "bag", "minibike", "cradle", "oven", "ball",
    "food", "step", "tank", "trade name", "microwave", "pot", "animal", "bicycle", "lake", "dishwasher", "screen",
    "blanket", "sculpture", "hood", "sconce", "vase", "traffic light", "tray", "ashcan", "fan", "pier", "crt screen",
    "plate", "monitor", "bulletin board", "shower", "radiator", "glass", "clock", "flag",
)
# fmt: on
LABELS = {0: IGNORE_INDEX} | {stored: stored - 1 for stored in range(1, len(CLASSES) + 1)}
BY_HAND = (
    "fetch http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip (0.9 GB) "
    "and unpack it in --data-dir (default data/ade20k)"
)


class Ade20k(GraftDataModule):
    """150 classes of things and stuff. Trains on crops of `image_size`, validates on whole images, undistorted."""

    tasks: ClassVar[tuple[Task, ...]] = ("segmentation",)
    class_names = CLASSES

    def default_size(self) -> tuple[int, int]:
        return 512, 512

    def sources(self) -> dict[str, Source]:
        root = Path(self.data_dir or "data/ade20k")
        if (root / "ADEChallengeData2016").is_dir():
            root = root / "ADEChallengeData2016"
        if not (root / "images" / "training").is_dir():
            raise DataError(f"{root / 'images' / 'training'} is missing; {BY_HAND}")
        sources: dict[str, MaskedImages] = {}
        for split, folder in (("train", "training"), ("val", "validation")):
            pairs = list(pair(root / "images" / folder, root / "annotations" / folder).values())
            sources[split] = MaskedImages(pairs, LABELS, "use the masks of ADEChallengeData2016")
        return dict(sources)
