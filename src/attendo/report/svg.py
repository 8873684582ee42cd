"""Matplotlib figures as inline SVG that belongs to its page: the page's font and colours, dark mode included.

The texts that a user wrote never enter matplotlib, which would read ``$`` as mathematics and warn of every sign that
its own font lacks: it lays out a placeholder, and the text takes its place in the finished SVG. Colours are
placeholders, too: each stands for a CSS variable that the page defines twice, for light and for dark.
"""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from xml.etree import ElementTree

import matplotlib.style
from markupsafe import Markup
from matplotlib.figure import Figure

INK, QUIET, RULE, PAPER = "#000001", "#000002", "#000003", "#000004"
SERIES = tuple(f"#{16 + i:06x}" for i in range(8))
VARIABLES = {INK: "ink", QUIET: "quiet", RULE: "rule", PAPER: "paper", **{c: f"s{i}" for i, c in enumerate(SERIES)}}
FONT_SIZE = 11  # units of the drawing, of which one is about a CSS pixel on a phone

_SETTINGS = {"svg.fonttype": "none", "svg.hashsalt": "attendo", "path.simplify": False, "font.size": FONT_SIZE}
_drawing = threading.Lock()


@contextmanager
def settings() -> Iterator[None]:
    """Draw with matplotlib's defaults whatever the user has set, and give the user's settings back.

    Matplotlib keeps its settings for the whole process, so only one thread at a time may be in here.
    """
    with _drawing, matplotlib.style.context(["default", _SETTINGS]):
        yield


class Drawing:
    """A matplotlib figure whose texts and colours are put in after it is drawn. Use it inside ``settings()``.

    Args:
        width: of the drawing, in units of which ``FONT_SIZE`` make the height of a line of text.
        height: the same.
    """

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width / 72, height / 72))  # matplotlib's SVG has 72 units to the inch
        self.figure.patch.set_visible(False)
        self._texts: list[str] = []

    def text(self, text: str) -> str:
        """Return the placeholder to draw in place of a text."""
        self._texts.append(text)
        return f"@{len(self._texts) - 1}"

    def svg(self, name: str, description: str) -> Markup:
        """Return the drawing as an SVG element without ids but ``name-0``, ``name-1`` ..., and without any address.

        Args:
            name: what sets its ids apart from those of the other drawings on the page.
            description: what a screen reader says in place of the drawing.
        """
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        root = ElementTree.fromstring(buffer.getvalue())
        for parent in list(root.iter()):
            for child in list(parent):
                if child.tag.rpartition("}")[2] in ("metadata", "style"):  # its style would rule the whole page
                    parent.remove(child)
        ids = _referenced(root, name)
        for element in root.iter():
            element.tag = element.tag.rpartition("}")[2]
            element.tail = None
            _clean(element, ids)
            if element.tag == "text":
                placeholder = element.text or ""
                if placeholder.startswith("@"):
                    element.text = self._texts[int(placeholder[1:])]
            else:
                element.text = None
        root.attrib = {
            "viewBox": f"0 0 {self.width:g} {self.height:g}",
            "role": "img",
            "aria-label": description,
        }
        return Markup(ElementTree.tostring(root, encoding="unicode"))


def _referenced(root: ElementTree.Element, name: str) -> dict[str, str]:
    """Return the ids that something on the drawing points at, with new names that depend on nothing but their order."""
    found: dict[str, str] = {}
    for element in root.iter():
        for key, value in element.attrib.items():
            ids = [value[1:]] if key.endswith("href") else re.findall(r"url\(#([^)]+)\)", value)
            for target in ids:
                found.setdefault(target, f"{name}-{len(found)}")
    return found


def _clean(element: ElementTree.Element, ids: dict[str, str]) -> None:
    """Rename ids, keep the colours' variables and the size of a text, and leave its font to the page."""
    attributes = {}
    for qualified, value in element.attrib.items():
        key = qualified.rpartition("}")[2]
        if key == "id":
            if value not in ids:
                continue
            value = ids[value]
        elif key == "href":
            value = f"#{ids[value[1:]]}"
        elif key == "transform" and value.startswith("rotate(-0 "):
            continue
        value = re.sub(r"url\(#([^)]+)\)", lambda match: f"url(#{ids[match[1]]})", value)
        if key == "style":
            value = _style(value, element.tag == "text")
        attributes[key] = value
    element.attrib = attributes


def _style(style: str, of_text: bool) -> str:
    """Return a style with variables for colours and, if it is a text's, without a font family."""
    rules = {}
    for rule in style.split(";"):
        key, _, value = rule.partition(":")
        key, value = key.strip(), value.strip()
        if not key or key == "font-family":
            continue
        if key == "font":  # how matplotlib before 3.10 writes size and family
            key, value = "font-size", value.partition("px")[0].rpartition(" ")[2] + "px"
        rules[key] = re.sub(r"#[0-9a-f]{6}", lambda match: f"var(--{VARIABLES[match[0]]})", value)
    if of_text:
        rules.setdefault("fill", "var(--ink)")
    return ";".join(f"{key}:{value}" for key, value in rules.items())
