"""Proposals: graph segmentation, selective search, sliding windows, and their way from files to batches."""

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import albumentations as A
import cv2
import numpy as np
import pytest

from datamodules.augmentation import compose
from datamodules.digits import Digits
from datamodules.graph_segmentation import NEIGHBOURS, SIGMA, graph_segmentation
from datamodules.objects import objects_of, transformed, with_proposals
from datamodules.proposals import METHODS, Proposals, completed, proposals_for, read, write
from datamodules.selective_search import Regions, SelectiveSearch, ranked
from heads.sliding_windows import sliding_windows
from tests.fake_data import photo


def segmented_by_a_loop(image: np.ndarray, scale: float, least: int) -> np.ndarray:
    """Felzenszwalb and Huttenlocher's algorithm as the paper writes it."""
    height, width = image.shape[:2]
    smooth = cv2.GaussianBlur(image.astype(np.float32), (0, 0), SIGMA)
    positions = np.arange(height * width).reshape(height, width)
    edges = [
        (float(np.sqrt(np.square(smooth.reshape(-1, 3)[a] - smooth.reshape(-1, 3)[b]).sum())), a, b)
        for one, other in NEIGHBOURS
        for a, b in zip(positions[one].ravel(), positions[other].ravel(), strict=True)
    ]
    edges.sort(key=lambda edge: edge[0])
    region, inside = {p: {p} for p in range(height * width)}, dict.fromkeys(range(height * width), 0.0)
    for enough in (False, True):
        for weight, a, b in edges:
            one, other = region[a], region[b]
            if one is other:
                continue
            limit = min(inside[min(r)] + scale / len(r) for r in (one, other))
            if min(len(one), len(other)) < least if enough else weight <= limit:
                both = one | other
                inside[min(both)] = weight
                region |= dict.fromkeys(both, both)
    names = {id(region[p]): p for p in reversed(range(height * width))}
    return np.array([names[id(region[p])] for p in range(height * width)]).reshape(height, width)


@pytest.mark.parametrize(("scale", "least"), [(60.0, 1), (150.0, 8)])
def test_segmentation_is_that_of_the_papers_loop(scale: float, least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if edges are dropped early, which takes a large image otherwise."""
    monkeypatch.setattr("datamodules.graph_segmentation.LEAST_EDGES", 40)
    image = photo(0, 20, 26)
    found, expected = graph_segmentation(image, scale, least), segmented_by_a_loop(image, scale, least)
    pairs = {(a, b) for a, b in zip(found.ravel().tolist(), expected.ravel().tolist(), strict=True)}
    assert len(pairs) == len(np.unique(found)) == len(np.unique(expected)) > 3
    assert found.max() == len(np.unique(found)) - 1


def test_merging_is_greedy() -> None:
    """Against a loop over all pairs of neighbours."""
    colours = photo(1, 24, 30)
    labels = graph_segmentation(colours, 60, 6)
    regions = Regions(colours, labels)
    for by_colour in (True, False):
        features = regions.features if by_colour else regions.without_colour
        parts = {i: (labels == i, features[i].astype(np.float64)) for i in range(regions.count)}
        boxes = [box_of(mask) for mask, _ in parts.values()]
        while len(parts) > 1:
            one, other = max(
                (pair for pair in combinations(sorted(parts), 2) if touch(parts[pair[0]][0], parts[pair[1]][0])),
                key=lambda pair: similarity(parts[pair[0]], parts[pair[1]]),
            )
            (a, x), (b, y) = parts.pop(one), parts.pop(other)
            parts[len(boxes)] = (a | b, (a.sum() * x + b.sum() * y) / (a.sum() + b.sum()))
            boxes.append(box_of(a | b))
        assert regions.count > 5
        assert regions.hierarchy(by_colour=by_colour).tolist() == boxes


def box_of(mask: np.ndarray) -> list[int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]


def touch(one: np.ndarray, other: np.ndarray) -> bool:
    return bool((cv2.dilate(one.astype(np.uint8), np.ones((3, 3))) > 0)[other].any())


def similarity(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> float:
    """Histograms that agree, small size and good fill: equations 2 to 6 of the paper."""
    (a, x), (b, y) = one, other
    x1, y1, x2, y2 = box_of(a | b)
    size = 1 - (a.sum() + b.sum()) / a.size
    fill = 1 - ((x2 - x1) * (y2 - y1) - a.sum() - b.sum()) / a.size
    return float(np.minimum(x, y).sum() + size + fill)


def squares() -> np.ndarray:
    image = np.full((60, 80, 3), (90, 90, 90), np.uint8)
    image[10:30, 15:40], image[35:55, 45:75] = (220, 40, 40), (40, 60, 230)
    return image


def test_coloured_squares_are_among_the_boxes() -> None:
    search = SelectiveSearch()
    boxes = search(squares())
    for square in ([15, 10, 40, 30], [45, 35, 75, 55], [0, 0, 80, 60]):
        assert np.abs(boxes - square).max(1).min() <= 1
    assert boxes.dtype == np.float32
    assert np.array_equal(boxes, search(squares()))
    assert len(np.unique(boxes, axis=0)) == len(boxes)
    other = SelectiveSearch(seed=1)(photo(2, 40, 50))
    same = SelectiveSearch()(photo(2, 40, 50))
    assert not np.array_equal(other, same)
    assert {tuple(box) for box in other.tolist()} == {tuple(box) for box in same.tolist()}


def test_large_images_are_shrunk_and_their_boxes_are_of_the_original() -> None:
    large = cv2.resize(squares(), (320, 240), interpolation=cv2.INTER_NEAREST)
    boxes = SelectiveSearch(longest=80)(large)
    assert np.abs(boxes - [60, 40, 160, 120]).max(1).min() <= 4
    assert boxes.max(0).tolist()[2:] == [320, 240]
    assert (boxes[:, 2:] - boxes[:, :2]).min() >= 0.04 * 320


def test_a_plain_image_has_one_box() -> None:
    assert SelectiveSearch()(np.zeros((30, 40, 3), np.uint8)).tolist() == [[0, 0, 40, 30]]


def test_order_begins_at_the_top_of_hierarchies() -> None:
    """The place from the top times a random number: the average place of the first boxes is nearer to the top."""
    hierarchy = np.stack([np.zeros(400), np.zeros(400), np.arange(1, 401), np.full(400, 9)], 1).astype(np.int64)
    order = ranked([hierarchy, hierarchy[:200]], 0)
    assert len(order) == 400
    assert order[:50, 2].mean() > order[-50:, 2].mean() + 50


def test_sliding_windows_lie_in_the_image() -> None:
    boxes = sliding_windows(90, 130, 500)
    assert boxes.shape == (500, 4)
    assert boxes.min() >= 0
    assert (boxes[:, 2:] <= [130, 90]).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert len(np.unique(boxes, axis=0)) == 500
    assert len(sliding_windows(1, 1)) == 1


SCENES = {"train": 4, "val": 3, "test": 2}


def digits(monkeypatch: pytest.MonkeyPatch, chosen: str | None, **more: object) -> Digits:
    monkeypatch.setattr(Digits, "SCENES", SCENES)
    data = Digits("detection", workers=0, batch_size=2, proposals=chosen, **more)
    data.setup()
    return data


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "graft" / "proposals"


def test_proposals_are_found_once_and_travel_with_the_objects(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    data = digits(monkeypatch, "selective_search")
    assert "training images are the same in each epoch" in capsys.readouterr().out
    (file,) = cache.glob("selective_search-*.npz")
    batch = next(iter(data.val_dataloader()))
    image, _, name = data.val.source[0]
    expected = METHODS["selective_search"](image)
    assert len(expected) > 10
    assert np.array_equal(batch["target"][0]["proposals"].numpy(), expected)
    assert name == batch["name"][0]
    (first, again) = (data.train[epoch, 1]["target"]["boxes"] for epoch in (0, 1))
    assert first.tolist() == again.tolist()

    def never(*_: object) -> np.ndarray:
        raise AssertionError("they are in the cache")

    monkeypatch.setitem(METHODS, "windows", never)
    monkeypatch.setattr(SelectiveSearch, "__call__", never)
    repeated = digits(monkeypatch, "selective_search")
    assert np.array_equal(repeated.val[0]["target"]["proposals"].numpy(), expected)
    # Other scenes have another file: only the training scenes depend on the seed.
    with pytest.raises(AssertionError, match="in the cache"):
        digits(monkeypatch, "selective_search", seed=1)
    copy = file.with_name("mine.npz")
    copy.write_bytes(file.read_bytes())
    from_file = digits(monkeypatch, str(copy))
    assert np.array_equal(from_file.val[0]["target"]["proposals"].numpy(), expected)
    assert "proposals" not in digits(monkeypatch, None).val[0]["target"]


class Pictures:
    """Three images of 40x30 pixels."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> tuple:
        return photo(index, 30, 40), objects_of([], []), f"picture {index}"


def test_unfinished_work_goes_on(tmp_path: Path) -> None:
    file, seen = tmp_path / "a.npz", []

    def method(image: np.ndarray) -> np.ndarray:
        seen.append(image)
        return np.float32([[0, 0, 10, 10]] * len(seen))

    write(file, {"val": {"picture 1": (np.float32([[1, 1, 5, 5]]), (30, 40))}})
    boxes = completed(method, {"val": Pictures()}, file, 0)
    assert len(seen) == 2
    assert {name: len(one) for name, (one, _) in boxes["val"].items()} == {
        "picture 1": 1,
        "picture 0": 1,
        "picture 2": 2,
    }
    again = read(str(file))["val"]
    assert list(again) == list(boxes["val"])
    for name, (found, size) in boxes["val"].items():
        assert again[name][0].tolist() == found.tolist()
        assert again[name][1] == size == (30, 40)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
    completed(method, {"val": Pictures()}, file, 0)
    assert len(seen) == 2


def test_processes_find_what_one_finds(tmp_path: Path) -> None:
    both = [completed(METHODS["windows"], {"val": Pictures()}, None, workers)["val"] for workers in (0, 2)]
    assert list(both[0]) == list(both[1])
    assert all(np.array_equal(both[0][name][0], both[1][name][0]) for name in both[0])


def damaged(path: Path) -> None:
    path.write_bytes(b"PK no archive")


def other_split(path: Path) -> None:
    write(path, {"train": {"a": (np.float32([[0, 0, 1, 1]]), (3, 4))}})


def wrong_count(path: Path) -> None:
    np.savez(path, val_names=["a"], val_sizes=[[3, 4]], val_counts=[3], val_boxes=np.zeros((1, 4)))


def not_finite(path: Path) -> None:
    np.savez(path, val_names=["a"], val_sizes=[[3, 4]], val_counts=[1], val_boxes=np.full((1, 4), np.nan))


def outside(path: Path) -> None:
    boxes = np.float32([[0, 0, 4.5, 3], [0, 0, 5, 5]])
    np.savez(path, val_names=["a", "b"], val_sizes=[[3, 4]] * 2, val_counts=[1, 1], val_boxes=boxes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (damaged, "is no file of proposals"),
        (other_split, "has no boxes for the split val; it has train"),
        (wrong_count, r"do not fit together: 1 names, sizes \(1, 2\), 1 counts of 3 boxes, \(1, 4\)"),
        (not_finite, r"1 boxes are none .* the first: \[nan, nan, nan, nan\] of a, which has 4x3 pixels"),
        (outside, r"1 boxes are none or lie outside their image; the first: \[0.0, 0.0, 5.0, 5.0\] of b"),
        (lambda path: None, r"no such file, nor a method \(selective_search, windows\)"),
    ],
)
def test_wrong_files_are_one_line(make: Callable, message: str, tmp_path: Path) -> None:
    make(tmp_path / "a.npz")
    with pytest.raises(ValueError, match=message) as caught:
        proposals_for(str(tmp_path / "a.npz"), {"val": Pictures()}, None, 0)
    assert str(tmp_path / "a.npz") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_boxes_belong_to_an_image_and_its_size() -> None:
    mine = Proposals({"a": (np.float32([[-0.5, 0, 20, 30.4], [2, 2, 9, 9]]), (30, 40))}, "--proposals a.npz")
    assert mine.of("a", photo(0, 30, 40)).tolist() == [[0, 0, 20, 30], [2, 2, 9, 9]]
    assert mine.of("a", photo(0, 60, 20), resized=True).tolist() == [[0, 0, 10, 60], [1, 4, 4.5, 18]]
    with pytest.raises(ValueError, match="a.npz: the boxes of a are of an image of 40x30 pixels, but it has 15x30"):
        mine.of("a", photo(0, 30, 15))
    with pytest.raises(ValueError, match="has no boxes for b; make them anew with experiments/propose.py"):
        mine.of("b", photo(0, 30, 40))


def test_proposals_move_with_the_image() -> None:
    pipeline = compose([A.HorizontalFlip(p=1), A.Resize(60, 160)], boxes=True)
    pipeline.set_random_state(np.random.default_rng(0), random.Random(0))
    objects = objects_of([(0, 0, 10, 10), (5, 5, 20, 25)], [4, 2], [True, False])
    given = with_proposals(objects, np.float32([[0, 0, 40, 15], [10, 0, 20, 30]]))
    assert given.labels.tolist() == [4, 2, -1, -1]
    moved = transformed(pipeline, photo(0, 30, 80), replace(objects, proposals=np.float32([[0, 0, 40, 15]])))[1]
    assert moved.labels.tolist() == [4, 2]
    assert moved.crowd.tolist() == [True, False]
    assert moved.boxes.tolist() == [[140, 0, 160, 20], [120, 10, 150, 50]]
    assert moved.proposals.tolist() == [[80, 0, 160, 30]]
    none = transformed(pipeline, photo(0, 30, 80), replace(objects, proposals=np.zeros((0, 4), np.float32)))[1]
    assert none.proposals.shape == (0, 4)


def test_other_tasks_take_no_proposals() -> None:
    with pytest.raises(ValueError, match="leave the flag out in segmentation"):
        Digits("segmentation", proposals="windows")
