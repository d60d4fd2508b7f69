"""CamVid as first published: 701 frames of 960x720 in colour-coded classes. Brostow, Fauqueur, Cipolla 2009.

Semantic object classes in video: A high-definition ground truth database, Pattern Recognition Letters 30(2). Of its 32
classes one is Void, which is ignored: 31 are scored. Layout, as published: the frames in `701_StillsRaw_full/`, the
masks in `LabeledApproved_full/NAME_L.png`; both may also be called `images/` and `labels/`. There is no published list:
frames are split by their names into the usual splits of the 11-class version (367, 101 and 233).
"""

from pathlib import Path
from typing import ClassVar

from datamodules.base import Colour, GraftDataModule, Source, Task
from datamodules.class_table import Row, class_table
from datamodules.errors import DataError
from datamodules.files import MaskedImages
from datamodules.pairing import Pair, list_images

CLASSES: dict[str, Colour] = {
    "Animal": (64, 128, 64),
    "Archway": (192, 0, 128),
    "Bicyclist": (0, 128, 192),
    "Bridge": (0, 128, 64),
    "Building": (128, 0, 0),
    "Car": (64, 0, 128),
    "CartLuggagePram": (64, 0, 192),
    "Child": (192, 128, 64),
    "Column_Pole": (192, 192, 128),
    "Fence": (64, 64, 128),
    "LaneMkgsDriv": (128, 0, 192),
    "LaneMkgsNonDriv": (192, 0, 64),
    "Misc_Text": (128, 128, 64),
    "MotorcycleScooter": (192, 0, 192),
    "OtherMoving": (128, 64, 64),
    "ParkingBlock": (64, 192, 128),
    "Pedestrian": (64, 64, 0),
    "Road": (128, 64, 128),
    "RoadShoulder": (128, 128, 192),
    "Sidewalk": (0, 0, 192),
    "SignSymbol": (192, 128, 128),
    "Sky": (128, 128, 128),
    "SUVPickupTruck": (64, 128, 192),
    "TrafficCone": (0, 0, 64),
    "TrafficLight": (0, 64, 64),
    "Train": (192, 64, 128),
    "Tree": (128, 128, 0),
    "Truck_Bus": (192, 128, 192),
    "Tunnel": (64, 0, 64),
    "VegetationMisc": (192, 192, 0),
    "Void": (0, 0, 0),
    "Wall": (64, 192, 0),
}
TABLE = class_table([Row(*item) for item in CLASSES.items()], "label_colors.txt of CamVid")
FOLDERS = (("701_StillsRaw_full", "LabeledApproved_full"), ("images", "labels"))
BY_HAND = (
    "fetch files701_StillsRaw_full.zip (557 MB) and LabeledApproved_full.zip (16 MB) from "
    "http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid and unpack them there, each in a folder of its name"
)


class CamVid32(GraftDataModule):
    """31 classes of driving scenes and void. Trains on crops of `image_size`, validates on whole images."""

    tasks: ClassVar[tuple[Task, ...]] = ("segmentation",)
    class_names = TABLE.names
    palette = TABLE.colours

    def default_size(self) -> tuple[int, int]:
        return 720, 960

    def sources(self) -> dict[str, Source]:
        root = Path(self.data_dir or "data/camvid32")
        folders = [(root / images, root / labels) for images, labels in FOLDERS if (root / images).is_dir()]
        if not folders:
            raise DataError(f"{root / FOLDERS[0][0]} is missing; {BY_HAND}")
        images, labels = folders[0]
        pairs: dict[str, list[Pair]] = {"train": [], "val": [], "test": []}
        for name, path in list_images(images).items():
            pairs[split_of(name)].append(Pair(name, path, labels / f"{name}_L.png"))
        empty = [split for split in ("train", "val") if not pairs[split]]
        if empty:
            raise DataError(f"{images} holds no frames of the {empty[0]} split; {BY_HAND}")
        sources = {
            split: MaskedImages(found, TABLE.labels, "correct the mask", TABLE.read)
            for split, found in pairs.items()
            if found
        }
        return dict(sources)


def split_of(name: str) -> str:
    """The split of a frame named SEQUENCE_NUMBER.

    Frames 7959 to 8159 of 0016E5 are for validation; Seq05VD, and 0001TP (dusk) after frame 8520, are for test.
    """
    sequence, _, frame = name.partition("_")
    number = int("".join(filter(str.isdigit, frame)) or 0)
    if sequence == "0016E5" and 7959 <= number <= 8159:
        return "val"
    if sequence == "Seq05VD" or (sequence == "0001TP" and number > 8520):
        return "test"
    return "train"
