"""The data sets: name -> LightningDataModule. `experiments/run.py` reads the names without importing this file."""

import os

# On import, albumentations asks PyPI for a newer version; a cluster node has no network for that.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
from datamodules.ade20k import Ade20k
from datamodules.base import GraftDataModule
from datamodules.camvid import CamVid
from datamodules.camvid32 import CamVid32
from datamodules.cityscapes import Cityscapes
from datamodules.coco import Coco
from datamodules.digits import Digits, DigitsTurned
from datamodules.drive import Drive
from datamodules.flowers102 import Flowers102
from datamodules.folders import Folders
from datamodules.imagenet import ImageNet
from datamodules.imagenet21k import ImageNet21k
from datamodules.pet import Pet
from datamodules.shards import Shards
from datamodules.small_images import Cifar10, Cifar100, FashionMnist, Mnist
from datamodules.voc import Voc
from datamodules.voc_boxes import Voc07, Voc0712

DATAMODULES: dict[str, type[GraftDataModule]] = {
    "digits": Digits,
    "digits_turned": DigitsTurned,
    "folders": Folders,
    "shards": Shards,
    "coco": Coco,
    "camvid": CamVid,
    "camvid32": CamVid32,
    "cityscapes": Cityscapes,
    "voc": Voc,
    "voc07": Voc07,
    "voc0712": Voc0712,
    "ade20k": Ade20k,
    "drive": Drive,
    "pet": Pet,
    "imagenet": ImageNet,
    "imagenet21k": ImageNet21k,
    "flowers102": Flowers102,
    "cifar10": Cifar10,
    "cifar100": Cifar100,
    "mnist": Mnist,
    "fashion_mnist": FashionMnist,
}
