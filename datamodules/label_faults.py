"""Faults that the labels of all masks together show: refused if certainly nonsense, said if possibly meant."""

from pathlib import Path

from datamodules.class_table import MOST_CLASSES, ClassTable
from datamodules.collate import IGNORE_INDEX
from datamodules.errors import DataError
from datamodules.files import spans
from datamodules.label_scan import LabelCounts
from datamodules.notes import note

MOST_UNUSED = 9
"""Classes that never occur, for each that does, from which counting up to the largest label cannot be meant."""
TABLE = "classes.csv (a line value,name, then 0,background and so on)"


def count_classes(counts: dict[str, LabelCounts], root: Path) -> int:
    """The number of classes of masks without a table of classes: their largest label + 1.

    Raises:
        ValueError: the labels cannot be meant so.
    """
    train = counts["train"]
    labels = sorted(label for label in set().union(*(one.labels for one in counts.values())) if label < IGNORE_INDEX)
    masks = f"the masks in {root}"
    if not labels or labels == [0]:
        raise DataError(
            f"{masks} hold no label but {spans(train.values)}, and 255 is ignored; write 1, 2, ... for the classes, or "
            "classes.csv of the lines value,name and 0,background and 255,object"
        )
    count = labels[-1] + 1
    unused = count - len(labels)
    if unused > MOST_UNUSED * len(labels):
        raise DataError(
            f"{masks} hold the labels {spans(labels)}: that would make {count} classes, {unused} of which never occur; "
            f"list the classes in {TABLE}"
        )
    if train.numbers_objects:
        note(
            f"{masks} hold the labels {spans(labels)} without gaps in each mask, as numbers of objects do: they are "
            f"read as {count} classes; if they number objects, write 1 for all of a class"
        )
    elif unused:
        absent = sorted(set(range(count)) - set(labels))
        note(
            f"{masks} hold the labels {spans(labels)}: of the classes 0 to {count - 1}, {spans(absent)} never "
            f"{'occurs' if unused == 1 else 'occur'}; if that is not meant, list the others in {TABLE}"
        )
    refuse_two_conventions(train, {label: label for label in labels} | {IGNORE_INDEX: IGNORE_INDEX}, masks)
    return count


def check_classes(counts: dict[str, LabelCounts], table: ClassTable, root: Path) -> None:
    """Compare the labels in masks with a table of classes.

    Raises:
        ValueError: fewer than two of the classes occur in training masks.
    """
    train = counts["train"]
    masks = f"the training masks in {root}"
    found = {table.labels.get(value, IGNORE_INDEX) for value in train.values} - {IGNORE_INDEX}
    absent = [name for label, name in enumerate(table.names) if label not in found]
    if len(found) < 2:
        ignored = [value for value in train.values if table.labels.get(value) == IGNORE_INDEX]
        but = f", of which {spans(ignored)} {'is' if len(ignored) == 1 else 'are'} ignored" if ignored else ""
        raise DataError(
            f"{masks} hold the labels {spans(train.values)}{but}: no pixel is {', '.join(absent[:5])} of "
            f"{table.source}; correct the masks, or say in {TABLE} what each label means; there, 255 may be a class"
        )
    if IGNORE_INDEX not in table.listed:
        refuse_two_conventions(train, table.labels, masks)
    if absent:
        names = ", ".join(absent[:10]) + (", ..." if len(absent) > 10 else "")
        note(f"{masks} have no pixel of {len(absent)} of the {len(table.names)} classes: {names}")


def say_lost_classes(train: LabelCounts, names: tuple[str, ...], labels: dict[int, int], size: tuple[int, int]) -> None:
    """Name the classes of which no pixel is left where training masks are resized."""
    before, after = ({labels.get(value, IGNORE_INDEX) for value in values} for values in (train.values, train.kept))
    lost = [names[label] for label in sorted(before - after - {IGNORE_INDEX})]
    if lost:
        note(
            f"--image-size {size[0]} {size[1]} leaves no pixel of {', '.join(lost)} in any training mask: too thin or "
            "small to be learned at that size; use a larger one"
        )


def refuse_soft(counts: LabelCounts, masks: str) -> None:
    if counts.soft:
        raise DataError(
            f"{masks} hold {len(counts.values)} different labels, {spans(counts.values)}, mostly in pixels between "
            "lower and higher ones, as smoothing, resizing or lossy compression leaves them; make the masks again "
            "without these, as PNG files"
        )


def refuse_numbers(counts: LabelCounts, masks: str) -> None:
    if counts.numbers_objects and max(counts.values) > IGNORE_INDEX:
        raise DataError(
            f"{masks} hold the labels {spans(counts.values)} without gaps in each mask, as numbers of objects do, and "
            f"at most {MOST_CLASSES} classes can be told apart; write 1 for all objects of a class"
        )


def refuse_two_conventions(counts: LabelCounts, labels: dict[int, int], masks: str) -> None:
    """Raises ValueError if some masks seem to write 255, which is ignored, for what others write 1 for."""
    classes = {label for label in labels.values() if label != IGNORE_INDEX}
    if labels.get(IGNORE_INDEX) != IGNORE_INDEX or classes != {0, 1} or counts.ignored_with_labels:
        return
    if counts.ignored_alone > 1:
        raise DataError(
            f"{masks} hold 0 and 255 only in {counts.ignored_alone} of {counts.masks} cases, 0 and 1 in the others: if "
            f"255 is the class 1 there, write 1; or list 0, 1 and 255 in {TABLE}, where two rows may share a name and "
            "the name ignore means to ignore"
        )
