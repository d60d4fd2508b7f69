"""Augmentation presets for training images, named after the papers that established them: `--augmentation NAME`.

Every preset is a function of `(image_size, mean)`. It returns transforms that end with crops of `image_size` (H, W).
What lies outside the image gets the colour `mean` (in [0, 1]), and 255 = ignore in masks. Every preset works for both
tasks; those that change colours need RGB images. Other pipelines can be written to a YAML file by
`A.save(A.Compose([...]), path, data_format="yaml")` and chosen by `--augmentation FILE`.

- alexnet: Krizhevsky et al. 2012. Resize the shorter side to 8/7 of the crop (256 pixels for a crop of 224), take the
  central square, then a random crop, flip, and add PCA colour noise.
- vgg: Simonyan and Zisserman 2014. Resize the shorter side to a random length from 8/7 to 16/7 of the crop (256 to 512
  for 224), then a random crop, flip, and add PCA colour noise.
- inception: Szegedy et al. 2014. A part of 8 to 100 % of the image with an aspect ratio from 3:4 to 4:3, flip, colour
  jitter.
- randaugment: Cubuk et al. 2019, arXiv:1909.13719, with EfficientNet's 2 operations at magnitude 9 of 10.
- deeplab: Chen et al. 2014 and its successors. Scale by 0.5 to 2 (or `--scale-range`), crop, flip.
- unet_elastic: Ronneberger et al. 2015. Random displacements of a 3x3 grid, interpolated by a spline, after the
  deeplab crop.
- ssd: Liu et al. 2015, arXiv:1512.02325, as in torchvision. Brightness, contrast, saturation and hue, a canvas up to
  four times as large, a part around an object, resize, flip.
- yolo: Redmon et al. 2015, arXiv:1506.02640. Scale and translation by up to a fifth of the image, flip, brightness and
  saturation by up to 1.5.
- mmsegmentation: deeplab's, then brightness, contrast, saturation and hue, each half of the time, as MMSegmentation's
  PhotoMetricDistortion.
- none: resize to `image_size`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import albumentations as A
import cv2
import numpy as np

from datamodules.albumentations_check import refuse_albumentationsx
from datamodules.collate import IGNORE_INDEX
from datamodules.colour_noise import ImageNetColourNoise
from datamodules.errors import DataError
from datamodules.object_window import ObjectWindow
from datamodules.objects import box_params
from datamodules.scale_crop import ResizeToCover, ScaleCrop

refuse_albumentationsx()

Size = tuple[int, int]
Builder = Callable[[Size, Sequence[float]], list[A.BasicTransform]]

RESIZES = (A.Resize, A.RandomScale, A.SmallestMaxSize, A.LongestMaxSize, A.RandomResizedCrop, A.RandomSizedCrop)
ELASTIC = 10 / 572
"""U-Net's displacements have a standard deviation of 10 pixels in tiles of 572."""
SMALLEST, LARGEST = 8 / 7, 16 / 7
"""Shorter side of the resized image, in sides of the crop: 256 and 512 for a crop of 224."""


def fill(mean: Sequence[float]) -> tuple[float, ...]:
    """The mean colour in 0..255."""
    return tuple(255 * value for value in mean)


def scale_crop_flip(image_size: Size, mean: Sequence[float]) -> list[A.BasicTransform]:
    """The usual segmentation augmentation: scale by 0.5 to 2, crop to `image_size` (padded with ignore), flip."""
    return [ScaleCrop(image_size, fill=fill(mean)), A.HorizontalFlip(p=0.5)]


def crop_flip(image_size: Size) -> list[A.BasicTransform]:
    """A crop at a random place of an image that is large enough, flipped half of the time."""
    return [A.RandomCrop(*image_size), A.HorizontalFlip(p=0.5)]


def alexnet(image_size: Size, mean: Sequence[float]) -> list[A.BasicTransform]:
    square = [round(side * SMALLEST) for side in image_size]
    resize = ResizeToCover(image_size, (SMALLEST, SMALLEST))
    return [resize, A.CenterCrop(*square), *crop_flip(image_size), ImageNetColourNoise()]


def vgg(image_size: Size, mean: Sequence[float]) -> list[A.BasicTransform]:
    return [ResizeToCover(image_size, (SMALLEST, LARGEST)), *crop_flip(image_size), ImageNetColourNoise()]


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


def colour_jitter(hue: float) -> list[A.BasicTransform]:
    """SSD's changes of brightness (by 32 of 255), contrast, saturation and hue (in turns of the colour circle)."""
    still = {"brightness": (1.0, 1.0), "contrast": (1.0, 1.0), "saturation": (1.0, 1.0), "hue": (0.0, 0.0), "p": 0.5}
    spans = {"brightness": (0.875, 1.125), "contrast": (0.5, 1.5), "saturation": (0.5, 1.5), "hue": (-hue, hue)}
    return [A.ColorJitter(**still | {name: span}) for name, span in spans.items()]


def ssd(image_size: Size, mean: Sequence[float]) -> list[A.BasicTransform]:
    window = [ObjectWindow(fill(mean)), *resize(image_size, mean)]
    return [*colour_jitter(0.05), *window, A.HorizontalFlip(p=0.5)]


def mmsegmentation(image_size: Size, mean: Sequence[float]) -> list[A.BasicTransform]:
    # 18 of the 180 degrees by which OpenCV counts hues of uint8 images; SSD's 18 are of 360.
    return [*scale_crop_flip(image_size, mean), *colour_jitter(0.1)]


def yolo(image_size: Size, mean: Sequence[float]) -> list[A.BasicTransform]:
    moved = A.Affine(
        scale={"x": (0.8, 1.2), "y": (0.8, 1.2)}, translate_percent=(-0.2, 0.2), fill=fill(mean),
        fill_mask=IGNORE_INDEX, p=1.0,
    )  # fmt: skip
    strengths = (1 / 1.5, 1.5)
    colours = A.ColorJitter(brightness=strengths, contrast=(1.0, 1.0), saturation=strengths, hue=(0.0, 0.0), p=1.0)
    return [*resize(image_size, mean), moved, A.HorizontalFlip(p=0.5), colours]


def resize(image_size: Size, mean: Sequence[float]) -> list[A.BasicTransform]:
    return [A.Resize(*image_size, area_for_downscale="image")]


AUGMENTATIONS: dict[str, Builder] = {
    "alexnet": alexnet,
    "vgg": vgg,
    "inception": inception,
    "randaugment": randaugment,
    "deeplab": scale_crop_flip,
    "unet_elastic": unet_elastic,
    "ssd": ssd,
    "mmsegmentation": mmsegmentation,
    "yolo": yolo,
    "none": resize,
}
RGB_ONLY = ("alexnet", "vgg", "inception", "randaugment", "ssd", "mmsegmentation", "yolo")
"""Presets that change colours."""
FROM_WHOLE_IMAGES = ("ssd",)
"""Presets that take parts of images, so these are not made smaller before, whatever `--fit` says."""
MOST_WARPED = 4
"""Bands that albumentations can fill with a colour of their own where it warps."""


def find_augmentation(name: str, image_size: Size, mean: Sequence[float]) -> list[A.BasicTransform]:
    """The preset of that name, or the pipeline in the YAML file of that name.

    Raises:
        ValueError: no preset or file has that name, or the file's pipeline does not return uint8 crops of `image_size`.
    """
    bands = len(mean)
    if name in AUGMENTATIONS:
        if name in RGB_ONLY and bands != 3:
            refuse_bands(name, bands, "changes colours, which needs RGB images")
        if name == "unet_elastic" and bands > MOST_WARPED:
            refuse_bands(name, bands, f"takes at most {MOST_WARPED} bands")
        return AUGMENTATIONS[name](image_size, mean)
    if not Path(name).is_file():
        raise DataError(f"--augmentation {name}: no such file; the presets are {', '.join(AUGMENTATIONS)}")
    try:
        pipeline = A.load(name, data_format="yaml")
        probe = np.zeros((image_size[0] + 7, image_size[1] + 9, bands), np.uint8)
        out = compose([pipeline])(image=probe, mask=probe[..., 0])
    except Exception as error:  # a file can hold anything, and a pipeline can raise anything
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"--augmentation {name} is no pipeline that A.save could have written ({reason})") from None
    image = out["image"]
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape != (*image_size, bands):
        what = f"{image.dtype} {tuple(image.shape)}"
        wanted = (*image_size, bands)
        raise DataError(
            f"--augmentation {name} makes {what} of an image, not uint8 {wanted}; end it with a crop to --image-size, "
            "and leave out Normalize and ToTensorV2, which are added automatically"
        )
    return [pipeline]


def set_scale_range(transforms: Sequence[A.BasicTransform], factors: tuple[float, float]) -> None:
    """Let the crop among the transforms scale by these factors.

    Raises:
        ValueError: none of them is a crop that scales.
    """
    crops = [one for one in transforms if isinstance(one, ScaleCrop)]
    if not crops:
        raise DataError(
            "--scale-range: this augmentation does not scale and crop; deeplab, mmsegmentation and unet_elastic do"
        )
    for crop in crops:
        crop.scale = factors


def refuse_bands(name: str, bands: int, why: str) -> NoReturn:
    raise DataError(f"--augmentation {name} {why}; with --in-channels {bands} use deeplab or none")


def compose(transforms: list[A.BasicTransform], *, boxes: bool = False) -> A.Compose:
    """One pipeline for image and mask; both stay uint8, and masks are never interpolated. Or for image and boxes."""
    # Sources have compared the sizes; whole masks may be larger than images that were resized.
    # albumentations warns of boxes that no transform of a pipeline changes.
    moving = boxes and any(isinstance(one, (A.DualTransform, A.BaseCompose)) for one in transforms)
    pipeline = A.Compose(transforms, bbox_params=box_params() if moving else None, is_check_shapes=False)
    take_nearest(pipeline)
    return pipeline


def take_nearest(transform: Any) -> None:
    """Force nearest-neighbour interpolation of masks in a transform and in all transforms nested in it, overriding
    their own setting."""
    for inner in getattr(transform, "transforms", ()):
        take_nearest(inner)
    if hasattr(transform, "mask_interpolation"):
        # When a mask is resized, INTER_NEAREST_EXACT takes the pixel at the centre; INTER_NEAREST is off by up to half
        # a pixel. Warping supports INTER_NEAREST only, which is exact there.
        transform.mask_interpolation = cv2.INTER_NEAREST_EXACT if isinstance(transform, RESIZES) else cv2.INTER_NEAREST
    if getattr(transform, "area_for_downscale", None) == "image_mask":
        transform.area_for_downscale = "image"
