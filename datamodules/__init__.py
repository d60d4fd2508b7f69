"""The data sets, name -> LightningDataModule. `experiments/run.py` reads the names without importing this file."""

import os

# Albumentations asks PyPI for a newer version on import; a cluster node has no network to ask over.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

from datamodules.base import GraftDataModule
from datamodules.camvid import CamVid
from datamodules.digits import Digits
from datamodules.folders import Folders

DATAMODULES: dict[str, type[GraftDataModule]] = {
    "digits": Digits,
    "camvid": CamVid,
    "folders": Folders,
}
