"""Boxes in the XML files of PASCAL VOC. Everingham, Van Gool, Williams, Winn, Zisserman 2010, IJCV 88(2).

Pixels are counted from 1 there and `xmax` is the last pixel of an object, so a box begins at xmin - 1 and ends at xmax.
Objects that are marked `difficult` neither train nor count in scores.
"""

from pathlib import Path, PureWindowsPath
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from datamodules.boxed_files import Annotation, Found

SIDES = ("xmin", "ymin", "xmax", "ymax")
MARKS = {"": False, "0": False, "false": False, "1": True, "true": True}
"""What `difficult` may be, in any case."""
LINE = "line of the file"
"""Attribute of each element, which cannot occur in a file because of its spaces."""


def read_xml(path: Path) -> Annotation:
    """The objects of a file, and what is wrong with it."""
    try:
        root = with_lines(path.read_bytes())
    except OSError as error:
        return Annotation(path, wrong=[f" it cannot be read ({error.strerror})"])
    except expat.ExpatError as error:
        reason = expat.ErrorString(error.code)
        return Annotation(path, wrong=[f"{error.lineno}: it is no whole XML file ({reason}); export it again"])
    except (LookupError, ValueError) as error:
        return Annotation(path, wrong=[f"1: its encoding cannot be read ({error}); save it in UTF-8"])
    if root.tag != "annotation":
        return Annotation(path, wrong=[f"1: its root is <{root.tag}>, not <annotation> as in PASCAL VOC"])
    found: list[Found] = []
    wrong: list[str] = []
    size: tuple[int, int] | None = None
    stated = root.find("size")
    for one in root.iter():
        line = int(one.attrib[LINE])
        try:
            if one.tag == "object":
                found.append(object_of(one, line))
            elif one.tag.lower() == "object":
                raise ValueError(f"<{one.tag}> is <object> in PASCAL VOC's files")
            elif one is stated:
                size = size_of(one)
        except ValueError as error:
            wrong.append(f"{line}: {error}")
    stated_name = PureWindowsPath((root.findtext("filename") or "").strip())  # which splits at both kinds of slashes
    other = "" if path.stem in {stated_name.stem, stated_name.name} else stated_name.name
    return Annotation(path, found, wrong, size, other_image=other)


def with_lines(text: bytes) -> Element:
    """The root of an XML file whose elements know their line."""
    builder, parser = TreeBuilder(), expat.ParserCreate()

    def start(tag: str, attributes: dict[str, str]) -> None:
        builder.start(tag, attributes | {LINE: str(parser.CurrentLineNumber)})

    parser.StartElementHandler = start
    parser.EndElementHandler = lambda tag: builder.end(tag)
    parser.CharacterDataHandler = builder.data
    parser.Parse(text, True)
    return builder.close()


def object_of(one: Element, line: int) -> Found:
    """Raises ValueError if the object has no name or no box of four numbers."""
    name = " ".join((one.findtext("name") or "").split())
    if not name:
        raise ValueError("an object has no name")
    boxes = one.findall("bndbox")
    if len(boxes) != 1:
        raise ValueError(f"an object ({name}) has {len(boxes) or 'no'} bndbox; it must have one")
    sides = []
    for side in SIDES:
        values = boxes[0].findall(side)
        text = " and ".join((value.text or "").strip() for value in values)
        try:
            sides.append(float(text))
        except ValueError:
            stated = f"{side} is '{text}', which is no number" if text else f"{side} is missing"
            raise ValueError(f"in the box of an object ({name}), {stated}") from None
    x1, y1, x2, y2 = sides
    mark = (one.findtext("difficult") or "").strip()
    if mark.lower() not in MARKS:
        raise ValueError(f"the mark difficult of an object ({name}) is '{mark}', neither 0 nor 1")
    return Found(line, name, (x1 - 1, y1 - 1, x2, y2), MARKS[mark.lower()])


def size_of(size: Element) -> tuple[int, int] | None:
    """H and W of the image; None if they are not stated, or stated as zero as some programs do.

    Raises:
        ValueError: one is no whole number.
    """
    sides = []
    for side in ("height", "width"):
        text = (size.findtext(side) or "0").strip()
        try:
            sides.append(int(text.removesuffix(".0")))
        except ValueError:
            raise ValueError(f"the {side} of the image is '{text}', which is no number of pixels") from None
    height, width = sides
    return (height, width) if height > 0 and width > 0 else None
