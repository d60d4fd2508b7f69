"""Tiny copies of the data sets, in the layouts they are published in: names, lists, colours and formats are real."""

import gzip
import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torchvision
from PIL import Image
from scipy.io import savemat

from datamodules import camvid32, cityscapes, voc

SIDE = 36
TRAIN, VAL, TEST = 10, 4, 3


def save(path: Path, pixels: np.ndarray, palette: list[int] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if palette is not None:
        image.putpalette(palette)
    image.save(path)
    return path


def photo(index: int, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """A gradient with a bright block, another for each index."""
    rows, columns = np.mgrid[:height, :width]
    image = np.stack([rows * 3 + index, columns * 3, (rows + columns) + 5 * index], axis=-1).astype(np.uint8)
    image[height // 4 : height // 2, width // 4 : width // 2] = 230
    return image


def two_labels(first: int, second: int, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """`second` where `photo` has its block, `first` elsewhere."""
    mask = np.full((height, width), first, np.uint8)
    mask[height // 4 : height // 2, width // 4 : width // 2] = second
    return mask


def make_voc(root: Path) -> None:
    """VOC's own lists, and SBD's masks for four more images; void along one side, sizes differ."""
    folder = root / "VOCdevkit" / "VOC2012"
    palette = [channel for colour in voc.CLASSES.values() for channel in colour] + [0] * (3 * 234) + [224, 224, 192]
    names = {"train": [f"2007_{i:06d}" for i in range(TRAIN)], "val": [f"2008_{i:06d}" for i in range(VAL)]}
    for split, members in names.items():
        listing = folder / "ImageSets" / "Segmentation" / f"{split}.txt"
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text("".join(f"{name}\n" for name in members))
        for index, name in enumerate(members):
            size = (SIDE + 2 * index, SIDE + index)
            mask = two_labels(0, 15, *size)
            mask[:, -2:] = 255
            save(folder / "JPEGImages" / f"{name}.jpg", photo(index, *size))
            save(folder / "SegmentationClass" / f"{name}.png", mask, palette)
    (root / "sbd" / "cls").mkdir(parents=True)
    for index, name in enumerate(["2009_000001", "2009_000002", *names["train"][:1], *names["val"][:1]]):
        save(folder / "JPEGImages" / f"{name}.jpg", photo(index))
        fields = {"Segmentation": two_labels(0, 20), "Boundaries": 0, "CategoriesPresent": np.array([20])}
        savemat(root / "sbd" / "cls" / f"{name}.mat", {"GTcls": fields})


def make_voc_boxes(root: Path) -> None:
    """Both years: each image has an object, every other one a difficult one; one has none. Sizes differ."""
    lists = {"2007": {"trainval": TRAIN, "test": VAL}, "2012": {"train": TRAIN, "val": VAL}}
    for year, splits in lists.items():
        folder = root / "VOCdevkit" / f"VOC{year}"
        everything = []
        for number, (split, count) in enumerate(splits.items()):
            names = [f"{number}{index:05d}" for index in range(count)]
            everything += names
            for index, name in enumerate(names):
                height, width = SIDE + 2 * index, SIDE + index
                save(folder / "JPEGImages" / f"{name}.jpg", photo(index, height, width))
                marked = [("person", (width // 4 + 1, height // 4 + 1, width // 2, height // 2), 0)]
                marked += [("dog", (1, 1, 9, 9), 1)] if index % 2 else []
                write_xml(folder / "Annotations" / f"{name}.xml", marked if index else [], (height, width))
            write_list(folder, split, names)
        if year == "2012":
            write_list(folder, "trainval", everything)


def write_list(folder: Path, split: str, names: list[str]) -> None:
    path = folder / "ImageSets" / "Main" / f"{split}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in names))


def write_xml(path: Path, objects: list[tuple], size: tuple[int, int] | None = (SIDE, SIDE)) -> Path:
    """An annotation of PASCAL VOC: objects are name, (xmin, ymin, xmax, ymax) and whether they are difficult."""
    lines = ["<annotation>", f"<filename>{path.stem}.jpg</filename>"]
    if size:
        lines.append(f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>")
    for name, sides, difficult in objects:
        box = "".join(f"<{key}>{one}</{key}>" for key, one in zip(("xmin", "ymin", "xmax", "ymax"), sides, strict=True))
        lines += ["<object>", f"<name>{name}</name>", f"<difficult>{difficult}</difficult>", f"<bndbox>{box}</bndbox>"]
        lines.append("</object>")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*lines, "</annotation>", ""]))
    return path


def make_cityscapes(root: Path) -> None:
    for split, city, count in (("train", "aachen", TRAIN), ("val", "frankfurt", VAL)):
        for index in range(count):
            name = f"{city}_{index:06d}_000019"
            truth = root / "gtFine" / split / city
            save(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", photo(index))
            ids = two_labels(7, 26)
            ids[:3] = 1  # ego vehicle, which is not scored
            save(truth / f"{name}_gtFine_labelIds.png", ids)
            save(truth / f"{name}_gtFine_instanceIds.png", ids)
            colours = np.zeros((*ids.shape, 4), np.uint8)
            for label_id, colour in cityscapes.CLASSES.values():
                colours[ids == label_id] = (*colour, 255)
            save(truth / f"{name}_gtFine_color.png", colours)
            polygon = {"imgHeight": SIDE, "imgWidth": SIDE, "objects": [{"label": "road", "polygon": [[0, 0], [1, 1]]}]}
            (truth / f"{name}_gtFine_polygons.json").write_text(json.dumps(polygon))


def make_coco(root: Path) -> None:
    """In COCO's own layout: polygons, both kinds of run lengths, a crowd, ids with gaps; sizes differ."""
    for split, count in (("train", TRAIN), ("val", VAL)):
        images, annotations = [], []
        for index in range(count):
            height, width = SIDE + 2 * index, SIDE + index
            save(root / f"{split}2017" / f"{index:012d}.jpg", photo(index, height, width))
            images.append({"id": 7 * index, "file_name": f"{index:012d}.jpg", "height": height, "width": width})
            square = [[2.0, 2.0, 20.0, 2.0, 20.0, 20.0, 2.0, 20.0]]
            runs = {"size": [height, width], "counts": [height, height, height * (width - 2)]}
            small = [[4.0, 4.0, 10.0, 4.0, 10.0, 10.0, 4.0, 10.0]]
            shapes = [
                (1, 0, square, [2, 2, 18, 18]),
                (90, 0, small, [4, 4, 6, 6]),
                (90, 1, runs, [1, 0, 1, height]),
            ]
            for category, crowd, shape, box in shapes:
                one = {"id": len(annotations), "image_id": 7 * index, "category_id": category, "iscrowd": crowd}
                annotations.append(one | {"segmentation": shape, "bbox": box})
        categories = [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}, {"id": 44, "name": "bottle"}]
        path = root / "annotations" / f"instances_{split}2017.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
        (path.parent / f"captions_{split}2017.json").write_text('{"images": [], "annotations": []}')


def make_ade20k(root: Path) -> None:
    folder = root / "ADEChallengeData2016"
    for split, short, count in (("training", "train", TRAIN), ("validation", "val", VAL)):
        for index in range(count):
            name, size = f"ADE_{short}_{index + 1:08d}", (SIDE, SIDE + 3 * index)
            mask = two_labels(1, 150, *size)
            mask[-2:] = 0
            save(folder / "images" / split / f"{name}.jpg", photo(index, *size))
            save(folder / "annotations" / split / f"{name}.png", mask)
    (folder / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tName\n1\t0.1576\t11664\t1172\twall\n")


def make_camvid(root: Path) -> None:
    for split, names in camvid_frames().items():
        (root / f"{split}.txt").parent.mkdir(parents=True, exist_ok=True)
        (root / f"{split}.txt").write_text("".join(f"/SegNet/CamVid/{split}/{name}.png\n" for name in names))
        for index, name in enumerate(names):
            mask = two_labels(3, 8)
            mask[:2] = 11
            save(root / split / f"{name}.png", photo(index))
            save(root / f"{split}annot" / f"{name}.png", mask)


def make_camvid32(root: Path) -> None:
    colours = camvid32.CLASSES
    lines = [f"{r} {g} {b}\t{name}\n" for name, (r, g, b) in colours.items()]
    for names in camvid_frames().values():
        for index, name in enumerate(names):
            mask = np.full((SIDE, SIDE, 3), colours["Road"], np.uint8)
            mask[two_labels(0, 1) == 1] = colours["Wall"]  # listed after Void
            mask[:2] = colours["Void"]
            save(root / "701_StillsRaw_full" / f"{name}.png", photo(index))
            save(root / "LabeledApproved_full" / f"{name}_L.png", mask)
    (root / "label_colors.txt").write_text("".join(lines))


def camvid_frames() -> dict[str, list[str]]:
    return {
        "train": [f"0016E5_{390 + 30 * i:05d}" for i in range(5)] + [f"0006R0_f{930 + 30 * i:05d}" for i in range(5)],
        "val": [f"0016E5_{7959 + 2 * i:05d}" for i in range(VAL)],
        "test": ["0001TP_008550", "Seq05VD_f00000", "Seq05VD_f00030"],
    }


def make_pet(root: Path) -> None:
    folder = root / "oxford-iiit-pet"
    breeds = ["Abyssinian", "american_bulldog"]
    rows: dict[str, list[str]] = {"trainval": [], "test": []}
    for split, count in (("trainval", TRAIN + VAL), ("test", TEST)):
        for index in range(count):
            breed = index % 2
            name, size = f"{breeds[breed]}_{index + 100 * (split == 'test')}", (SIDE + index, SIDE)
            trimap = two_labels(2, 1, *size)
            trimap[size[0] // 4] = 3
            save(folder / "images" / f"{name}.jpg", photo(index, *size))
            save(folder / "annotations" / "trimaps" / f"{name}.png", trimap)
            (folder / "annotations" / "trimaps" / f"._{name}.png").write_bytes(b"\0\5\26\7")  # as in the archive
            rows[split].append(f"{name} {breed + 1} {breed + 1} 1")
    for split, lines in rows.items():
        (folder / "annotations" / f"{split}.txt").write_text("\n".join(lines) + "\n")
    heading = "#Image CLASS-ID SPECIES BREED ID\n#ID: 1:37 Class ids\n"
    (folder / "annotations" / "list.txt").write_text(heading + "\n".join(rows["trainval"] + rows["test"]) + "\n")


def make_drive(root: Path) -> None:
    for split, short, numbers in (("training", "training", range(21, 35)), ("test", "test", range(1, 4))):
        for one in numbers:
            view = two_labels(255, 255)
            view[:, :3] = 0
            save(root / split / "images" / f"{one:02d}_{short}.tif", photo(one))
            save(root / split / "1st_manual" / f"{one:02d}_manual1.gif", two_labels(0, 255))
            save(root / split / "mask" / f"{one:02d}_{short}_mask.gif", view)


def make_imagenet(root: Path) -> None:
    for wnid in ("n01440764", "n01443537"):
        for index in range(TRAIN // 2):
            save(root / "train" / wnid / f"{wnid}_{index}.JPEG", photo(index))
        for index in range(VAL // 2):
            save(root / "val" / wnid / f"ILSVRC2012_val_{index:08d}.JPEG", photo(index))


def make_imagenet21k(root: Path) -> None:
    for wnid in ("n01440764", "n02012849", "n02084071", "n03126707"):  # tench, crane, dog, crane
        for index in range(TRAIN // 2):
            save(root / wnid / f"{wnid}_{index}.JPEG", photo(index))


def make_flowers(root: Path) -> None:
    folder, count = root / "flowers-102", TRAIN + VAL + TEST
    for index in range(count):
        save(folder / "jpg" / f"image_{index + 1:05d}.jpg", photo(index, SIDE + index))
    ids = np.arange(1, count + 1)[::-1]
    members = {"trnid": ids[:TRAIN], "valid": ids[TRAIN : TRAIN + VAL], "tstid": ids[TRAIN + VAL :]}
    savemat(folder / "setid.mat", members)
    savemat(folder / "imagelabels.mat", {"labels": np.arange(count) % 102 + 1})


def make_cifar(root: Path, folder: str, files: dict[str, int], labels: str, meta: dict[str, object]) -> None:
    (root / folder).mkdir(parents=True)
    for file, count in files.items():
        data = np.stack([photo(index, 32, 32).transpose(2, 0, 1).ravel() for index in range(count)])
        (root / folder / file).write_bytes(pickle.dumps({"data": data, labels: [i % 10 for i in range(count)]}))
    name = "batches.meta" if "label_names" in meta else "meta"
    (root / folder / name).write_bytes(pickle.dumps(meta))


def make_cifar10(root: Path) -> None:
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    files = {f"data_batch_{i}": 3 for i in range(1, 6)} | {"test_batch": TEST}
    make_cifar(root, "cifar-10-batches-py", files, "labels", {"label_names": names})


def make_cifar100(root: Path) -> None:
    meta: dict[str, object] = {"fine_label_names": [f"thing {i}" for i in range(100)]}
    make_cifar(root, "cifar-100-python", {"train": 15, "test": TEST}, "fine_labels", meta)


def make_idx(root: Path, folder: str, *, packed: bool) -> None:
    (root / folder / "raw").mkdir(parents=True)
    for split, count in (("train", 15), ("t10k", TEST)):
        images = np.stack([photo(index, 28, 28)[..., 0] for index in range(count)])
        labels = (np.arange(count) % 10).astype(np.uint8)
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes()
            data = head + values.tobytes()
            path = root / folder / "raw" / f"{split}-{kind}-ubyte{'.gz' * packed}"
            path.write_bytes(gzip.compress(data) if packed else data)


def make_folders(root: Path, task: str) -> None:
    for split, count in (("train", TRAIN), ("val", VAL)):
        for index in range(count):
            if task == "detection":
                save(root / split / "images" / f"{index}.jpg", photo(index))
                label = root / split / "labels" / f"{index}.txt"
                label.parent.mkdir(parents=True, exist_ok=True)
                label.write_text(f"{index % 2} 0.375 0.375 0.25 0.25\n" * (index > 0))
            elif task == "segmentation":
                save(root / split / "images" / f"{index}.png", photo(index))
                save(root / split / "masks" / f"{index}.png", two_labels(0, 1))
            else:
                save(root / split / ("ants", "bees")[index % 2] / f"{index}.jpg", photo(index))


def make_shards(root: Path, task: str) -> None:
    """webdataset's tar files: files of one sample share a stem."""
    for split, count in (("train", TRAIN), ("val", VAL)):
        root.mkdir(parents=True, exist_ok=True)
        with tarfile.open(root / f"{split}-000.tar", "w") as tar, TemporaryDirectory() as scratch:
            for index in range(count):
                image, other = Path(scratch) / f"{index:04d}.jpg", Path(scratch) / f"{index:04d}.png"
                save(image, photo(index))
                if task == "segmentation":
                    save(other, two_labels(0, 1))
                else:
                    other = other.with_suffix(".cls")
                    other.write_text(str(index % 2))
                for path in (image, other):
                    tar.add(path, path.name)
    (root / "classes.txt").write_text("background\nthing\n")


MAKERS: dict[str, Callable[[Path], None]] = {
    "voc": make_voc,
    "voc07": make_voc_boxes,
    "voc0712": make_voc_boxes,
    "cityscapes": make_cityscapes,
    "ade20k": make_ade20k,
    "coco": make_coco,
    "camvid": make_camvid,
    "camvid32": make_camvid32,
    "pet": make_pet,
    "drive": make_drive,
    "imagenet": make_imagenet,
    "imagenet21k": make_imagenet21k,
    "flowers102": make_flowers,
    "cifar10": make_cifar10,
    "cifar100": make_cifar100,
    "mnist": lambda root: make_idx(root, "MNIST", packed=False),
    "fashion_mnist": lambda root: make_idx(root, "FashionMNIST", packed=True),
}


def make_fake(name: str, task: str, root: Path) -> str | None:
    """A tiny copy of data set `name` under `root`, for `--data-dir`; None where the set brings its own."""
    if name in ("digits", "digits_turned"):
        return None
    if name in ("folders", "shards"):
        (make_folders if name == "folders" else make_shards)(root, task)
    elif task == "detection" and name == "voc":
        make_voc_boxes(root)
    else:
        MAKERS[name](root)
    return str(root)


def accept_fake_checksums(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision compares CIFAR's files with the published checksums, which no small copy can have."""
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda path, md5=None: Path(path).is_file())
