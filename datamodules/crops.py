"""The usual crops of classification: random for training, central for evaluation."""

import albumentations as A


def random_crop_flip(image_size: tuple[int, int], least: float = 0.35) -> list[A.BasicTransform]:
    """Resize a random part of the image, at least the fraction `least` of its area, and flip it half of the time."""
    return [
        A.RandomResizedCrop(image_size, scale=(least, 1.0), area_for_downscale="image"),
        A.HorizontalFlip(p=0.5),
    ]


def centre_crop(image_size: tuple[int, int]) -> list[A.BasicTransform]:
    """Resize the image to just cover `image_size` / 0.875, keeping its aspect ratio, and take the centre crop.

    Objects are then about as large as in training.
    """
    height, width = image_size
    margin = (round(height / 0.875), round(width / 0.875))
    return [A.SmallestMaxSize(max_size_hw=margin, area_for_downscale="image"), A.CenterCrop(height, width)]
