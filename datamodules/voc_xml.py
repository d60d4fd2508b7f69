"""Boxes in the XML files of PASCAL VOC. Everingham, Van Gool, Williams, Winn, Zisserman 2010, IJCV 88(2).

Pixels are counted from 1 there and `xmax` is the last pixel of an object, so a box begins at xmin - 1 and ends at xmax.
Objects that are marked `difficult` neither train nor count in scores.
"""

from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from datamodules.boxed_files import Annotation, Found

SIDES = ("xmin", "ymin", "xmax", "ymax")
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
    for one in root.iter("object"):
        line = int(one.attrib[LINE])
        try:
            found.append(object_of(one, line))
        except ValueError as error:
            wrong.append(f"{line}: {error}")
    return Annotation(path, found, wrong, size_of(root))


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
    name = (one.findtext("name") or "").strip()
    if not name:
        raise ValueError("an object has no name")
    box = one.find("bndbox")
    if box is None:
        raise ValueError(f"an object ({name}) has no bndbox")
    sides = []
    for side in SIDES:
        text = (box.findtext(side) or "").strip()
        try:
            sides.append(float(text))
        except ValueError:
            stated = f"{side} is '{text}', which is no number" if text else f"{side} is missing"
            raise ValueError(f"in the box of an object ({name}), {stated}") from None
    x1, y1, x2, y2 = sides
    difficult = (one.findtext("difficult") or "").strip() == "1"
    return Found(line, name, (x1 - 1, y1 - 1, x2, y2), difficult)


def size_of(root: Element) -> tuple[int, int] | None:
    """H and W of the image; None if the file does not state them, or states zero as some programs do."""
    try:
        height, width = (int(root.findtext(f"size/{side}") or 0) for side in ("height", "width"))
    except ValueError:
        return None
    return (height, width) if height > 0 and width > 0 else None
