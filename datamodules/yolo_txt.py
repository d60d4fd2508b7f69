"""Boxes in text files as YOLO's programs write them: a line for each object, `class x y width height`.

x and y are the centre, and all four numbers are fractions of the image. Lines of a class and three or more points, as
for segmentation, stand for the boxes around their points.
"""

from pathlib import Path

from datamodules.boxed_files import Annotation, Found

LEAST_POINTS = 3
LARGEST = 1.001
"""Fractions above it cannot come from rounding."""


def read_txt(path: Path) -> Annotation:
    """The objects of a file, and what is wrong with it."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        return Annotation(path, wrong=[f" it cannot be read ({error.strerror})"])
    except UnicodeDecodeError:
        return Annotation(path, wrong=["1: it is no text in UTF-8; export it again"])
    found: list[Found] = []
    wrong: list[str] = []
    polygons = 0
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                found.append(object_of(line.split(), number))
                polygons += len(line.split()) > 5
            except ValueError as error:
                wrong.append(f"{number}: {error}")
    return Annotation(path, found, wrong, polygons=polygons)


def object_of(words: list[str], line: int) -> Found:
    """Raises ValueError if the words are not a class and the numbers of a box or of points."""
    is_polygon = len(words) % 2 == 1 and len(words) >= 1 + 2 * LEAST_POINTS
    if len(words) != 5 and not is_polygon:
        hint = "; a sixth one is the score of a prediction, not a label" if len(words) == 6 else ""
        hint = "; write spaces between them" if len(words) == 1 and set(words[0]) & set(",;") else hint
        raise ValueError(f"{len(words)} numbers, not 5: class, x, y, width, height{hint}")
    try:
        label, *numbers = map(float, words)
    except ValueError:
        text = next(word for word in words if not is_number(word))
        raise ValueError(f"'{text}' is no number") from None
    if label < 0 or label != label // 1:
        raise ValueError(f"the class is {words[0]}; it must be a whole number of at least 0")
    if not all(abs(number) < float("inf") for number in numbers):
        raise ValueError(f"{' '.join(words[1:])} has a number that is not finite")
    least, largest = min(numbers), max(numbers)
    if least < 0 or largest > LARGEST:
        raise ValueError(
            f"{least if least < 0 else largest:g} is not from 0 to 1; x, y, width and height are fractions of the image"
        )
    if is_polygon:
        xs, ys = numbers[::2], numbers[1::2]
        return Found(line, str(int(label)), (min(xs), min(ys), max(xs), max(ys)))
    x, y, width, height = numbers
    return Found(line, str(int(label)), (x - width / 2, y - height / 2, x + width / 2, y + height / 2))


def is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
