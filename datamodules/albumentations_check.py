"""Refuse to run on AlbumentationsX, which installs its files over those of albumentations, under the same name.

AlbumentationsX is licensed under the AGPL or commercially; this project is written for albumentations 2.0.8 (MIT). If
both are installed, the files are those of the later one, while pip lists both.
"""

from importlib.metadata import PackageNotFoundError, version

from datamodules.errors import DataError


def refuse_albumentationsx() -> None:
    """Check the installed packages.

    Raises:
        ValueError: AlbumentationsX is installed.
    """
    try:
        found = version("albumentationsx")
    except PackageNotFoundError:
        return
    raise DataError(
        f"albumentationsx {found} is installed and replaces files of albumentations; run `pip uninstall "
        "albumentationsx` and `pip install --force-reinstall albumentations==2.0.8`"
    )
