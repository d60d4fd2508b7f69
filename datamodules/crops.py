"""How photographs with one class each are cut to size: the usual training crop and the usual test crop."""

import albumentations as A


def random_crop_flip(image_size: tuple[int, int], least: float = 0.35) -> list[A.BasicTransform]:
    """A random part of the image, of at least the share `least` of its area, mirrored every other time."""
    return [
        A.RandomResizedCrop(image_size, scale=(least, 1.0), area_for_downscale="image"),
        A.HorizontalFlip(p=0.5),
    ]


def centre_crop(image_size: tuple[int, int]) -> list[A.BasicTransform]:
    """The centre at 7/8 of the image's shorter side: objects as large as in training, sides in proportion."""
    height, width = image_size
    margin = (round(height / 0.875), round(width / 0.875))
    return [A.SmallestMaxSize(max_size_hw=margin, area_for_downscale="image"), A.CenterCrop(height, width)]
