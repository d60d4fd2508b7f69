"""What training images go through, by the name of the paper that made it usual: `--augmentation NAME`.

Every preset is a function of `(image_size, mean)`: it yields crops of `image_size` (H, W), with `mean` in [0, 1] as the
colour of what lies outside the image, where masks are 255 = ignore. All of them may be used for either task. Anything
else goes into a YAML file written by `A.save(A.Compose([...]), path, data_format="yaml")`: `--augmentation FILE`.

- alexnet: Krizhevsky et al. 2012. Shorter side at 8/7 of the crop, random crop, mirror, PCA colour noise.
- vgg: Simonyan and Zisserman 2014. The same, with a shorter side from 8/7 to 16/7 of the crop.
- inception: Szegedy et al. 2014. A part of 8 to 100 % of the image, 3:4 to 4:3, mirror, colour jitter.
- randaugment: Cubuk et al. 2019, arXiv:1909.13719, with EfficientNet's 2 operations at magnitude 9 of 10.
- deeplab: Chen et al. 2014 and all that followed. Scale by 0.5 to 2, crop, mirror.
- unet_elastic: Ronneberger et al. 2015. Displacements of a 3x3 grid, a spline between them, over the deeplab crop.
- none: resized to `image_size`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import albumentations as A
import cv2
import numpy as np

from datamodules.collate import IGNORE_INDEX
from datamodules.errors import DataError
from datamodules.scale_crop import ScaleCrop

Size = tuple[int, int]
Builder = Callable[[Size, Sequence[float]], list[A.BasicTransform]]

RESIZES = (A.Resize, A.RandomScale, A.SmallestMaxSize, A.LongestMaxSize, A.RandomResizedCrop, A.RandomSizedCrop)
ELASTIC = 10 / 572
"""U-Net's displacements have a standard deviation of 10 pixels in tiles of 572."""


def fill(mean: Sequence[float]) -> tuple[float, ...]:
    """The mean colour, in levels."""
    return tuple(255 * value for value in mean)


def scale_crop_flip(image_size: Size, mean: Sequence[float]) -> list[A.BasicTransform]:
    """The usual segmentation augmentation: scale by 0.5 to 2, crop to `image_size` (padded with ignore), mirror."""
    return [ScaleCrop(image_size, fill=fill(mean)), A.HorizontalFlip(p=0.5)]


def crop_flip(image_size: Size, mean: Sequence[float]) -> list[A.BasicTransform]:
    """A crop at a random place, and its mirror image every other time."""
    padding = {"pad_if_needed": True, "fill": fill(mean), "fill_mask": IGNORE_INDEX}
    return [A.RandomCrop(*image_size, **padding), A.HorizontalFlip(p=0.5)]


def shorter_side(image_size: Size, factors: tuple[float, ...]) -> A.BasicTransform:
    """Resize until both sides reach the crop's, times one of `factors`."""
    resizes = [
        A.SmallestMaxSize(
            max_size_hw=(round(image_size[0] * factor), round(image_size[1] * factor)), area_for_downscale="image"
        )
        for factor in factors
    ]
    return A.OneOf(resizes, p=1.0)


def alexnet(image_size: Size, mean: Sequence[float]) -> list[A.BasicTransform]:
    return [shorter_side(image_size, (8 / 7,)), *crop_flip(image_size, mean), A.FancyPCA(alpha=0.1, p=1.0)]


def vgg(image_size: Size, mean: Sequence[float]) -> list[A.BasicTransform]:
    scales = tuple(float(factor) for factor in np.linspace(8 / 7, 16 / 7, 9))
    return [shorter_side(image_size, scales), *crop_flip(image_size, mean), A.FancyPCA(alpha=0.1, p=1.0)]


def inception(image_size: Size, mean: Sequence[float]) -> list[A.BasicTransform]:
    return [
        A.RandomResizedCrop(image_size, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), area_for_downscale="image"),
        A.HorizontalFlip(p=0.5),
        A.ColorJitter(brightness=(0.6, 1.4), contrast=(0.6, 1.4), saturation=(0.6, 1.4), hue=(0.0, 0.0), p=1.0),
    ]


def randaugment(image_size: Size, mean: Sequence[float]) -> list[A.BasicTransform]:
    still = {"brightness": (1.0, 1.0), "contrast": (1.0, 1.0), "saturation": (1.0, 1.0), "hue": (0.0, 0.0), "p": 1.0}
    outside = {"fill": fill(mean), "fill_mask": IGNORE_INDEX, "p": 1.0}
    operations = [
        A.NoOp(p=1.0),
        A.AutoContrast(p=1.0),
        A.Equalize(p=1.0),
        A.Posterize(num_bits=(4, 5), p=1.0),
        A.Solarize(threshold_range=(0.1, 0.5), p=1.0),
        A.ColorJitter(**still | {"brightness": (0.1, 1.9)}),
        A.ColorJitter(**still | {"contrast": (0.1, 1.9)}),
        A.ColorJitter(**still | {"saturation": (0.1, 1.9)}),
        A.Sharpen(alpha=(0.1, 0.9), p=1.0),
        A.Affine(rotate=(-27, 27), **outside),
        A.Affine(shear={"x": (-15, 15), "y": (0, 0)}, **outside),
        A.Affine(shear={"x": (0, 0), "y": (-15, 15)}, **outside),
        A.Affine(translate_percent={"x": (-0.4, 0.4), "y": (0, 0)}, **outside),
        A.Affine(translate_percent={"x": (0, 0), "y": (-0.4, 0.4)}, **outside),
    ]
    crop = A.RandomResizedCrop(image_size, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), area_for_downscale="image")
    return [crop, A.HorizontalFlip(p=0.5), A.SomeOf(operations, n=2, replace=True, p=1.0)]


def unet_elastic(image_size: Size, mean: Sequence[float]) -> list[A.BasicTransform]:
    spline = A.ThinPlateSpline(
        scale_range=(ELASTIC, ELASTIC), num_control_points=3, fill=fill(mean), fill_mask=IGNORE_INDEX, p=1.0
    )
    return [*scale_crop_flip(image_size, mean), spline]


def resize(image_size: Size, mean: Sequence[float]) -> list[A.BasicTransform]:
    return [A.Resize(*image_size, area_for_downscale="image")]


AUGMENTATIONS: dict[str, Builder] = {
    "alexnet": alexnet,
    "vgg": vgg,
    "inception": inception,
    "randaugment": randaugment,
    "deeplab": scale_crop_flip,
    "unet_elastic": unet_elastic,
    "none": resize,
}


def find_augmentation(name: str, image_size: Size, mean: Sequence[float]) -> list[A.BasicTransform]:
    """The preset of that name, or what the YAML file of that name holds.

    Raises:
        ValueError: there is neither, or what is in the file does not give crops of bytes.
    """
    if name in AUGMENTATIONS:
        return AUGMENTATIONS[name](image_size, mean)
    if not Path(name).is_file():
        raise DataError(f"--augmentation {name}: no such file; by name there are {', '.join(AUGMENTATIONS)}")
    try:
        pipeline = A.load(name, data_format="yaml")
        probe = np.zeros((image_size[0] + 7, image_size[1] + 9, 3), np.uint8)
        out = compose([pipeline])(image=probe, mask=probe[..., 0])
    except Exception as error:  # whatever a file can be, and a pipeline can do
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"--augmentation {name} is no pipeline that A.save could have written ({reason})") from None
    image = out["image"]
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape != (*image_size, 3):
        what = f"{image.dtype} {tuple(image.shape)}"
        height, width = image_size
        raise DataError(
            f"--augmentation {name} makes {what} of an image, not uint8 {(height, width, 3)}; end it with a crop to "
            "--image-size, and leave out Normalize and ToTensorV2, which come by themselves"
        )
    return [pipeline]


def compose(transforms: list[A.BasicTransform]) -> A.Compose:
    """One pipeline for image and mask, uint8 from end to end; masks are never interpolated."""
    pipeline = A.Compose(transforms)
    take_nearest(pipeline)
    return pipeline


def take_nearest(transform: Any) -> None:
    """Make a transform, and those inside it, take the nearest pixel in masks, whatever it was told."""
    for inner in getattr(transform, "transforms", ()):
        take_nearest(inner)
    if hasattr(transform, "mask_interpolation"):
        # Where a mask is resized, the exact way takes the pixel under the centre; the plain one is off by up to half a
        # pixel. Warping knows the plain one only, which is exact there.
        transform.mask_interpolation = cv2.INTER_NEAREST_EXACT if isinstance(transform, RESIZES) else cv2.INTER_NEAREST
    if getattr(transform, "area_for_downscale", None) == "image_mask":
        transform.area_for_downscale = "image"
