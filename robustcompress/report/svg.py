"""Drawings for an HTML page: a matplotlib figure becomes an inline SVG element."""

import io
import re
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from threading import Lock
from typing import Any
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

BLUE = "#2c6ba0"
ORANGE = "#d9722b"
GREEN = "#2f8f6b"
GREY = "#b4bcc6"
INK = "#27323d"
FAINT = "#dfe4e9"
"""Blue against orange stays apart for every common kind of colour blindness, and in grey."""

# What decides how a picture looks: reset to matplotlib's defaults, so that a user's matplotlibrc cannot
# change the report's bytes.
_FAMILIES = {
    "axes", "figure", "font", "grid", "hatch", "image", "legend", "lines", "markers", "mathtext",
    "patch", "path", "savefig", "svg", "text", "xtick", "ytick",
}  # fmt: skip
_STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#8a95a1",
    "axes.formatter.useoffset": False,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 9.5,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "font.size": 9.5,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "svg.fonttype": "none",  # text stays text: it can be read aloud, searched and copied
    "svg.hashsalt": "robustcompress",
    "text.color": INK,
    "text.parse_math": False,  # a layer may be called $x$
    "xtick.color": INK,
    "xtick.major.size": 0,
    "ytick.color": INK,
    "ytick.major.size": 0,
}
_NAMESPACE = re.compile(r"\{[^}]*\}")
_REFERENCE = re.compile(r"(?<=url\(#)[^)]+|(?<=^#)[^ ]+")
_SETTINGS = Lock()


def render_svg(draw: Callable[[Figure], None], *, size: tuple[float, float], name: str, label: str) -> Markup:
    """Draw a figure and return it as an SVG element to put into an HTML page.

    The same drawing gives the same bytes. Ids begin with ``name``, so that several drawings on one page do
    not take each other's clip paths. The element carries no width or height: it fills its place.

    Args:
        draw: Fills the empty figure.
        size: Width and height in inches; text is 9.5 points high at that size.
        name: Unique on the page; letters, digits and hyphens.
        label: What the picture shows, in words.
    """
    buffer = io.StringIO()
    with _settings():
        figure = Figure(figsize=size, layout="constrained", facecolor="none")
        canvas = FigureCanvasSVG(figure)
        draw(figure)
        canvas.print_svg(buffer, metadata={"Date": None})
    return _inline(buffer.getvalue(), name, label)


def printable(text: str, *, limit: int = 34) -> str:
    """Return ``text`` for a picture: no control characters, the middle cut out where it is too long."""
    shown = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
    if len(shown) <= limit:
        return shown
    head = (limit - 1) // 2
    return f"{shown[:head]}…{shown[head + 1 - limit :]}"


@contextmanager
def _settings() -> Generator[None, None, None]:
    """Hold matplotlib's global settings at ours, one drawing at a time, and put the caller's back."""
    # Matplotlib types the keys as literals that differ between its own two functions.
    settings: Any = {
        key: value
        for key, value in matplotlib.rcParamsDefault.items()
        if key.partition(".")[0] in _FAMILIES and key != "savefig.directory"
    }
    settings |= _STYLE
    with _SETTINGS, matplotlib.rc_context(settings), warnings.catch_warnings():
        # The reader's browser draws the letters; matplotlib's own font need not have them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        yield


def _inline(document: str, name: str, label: str) -> Markup:
    """Return the document's ``svg`` element without what a page has no use for or would share."""
    root = ElementTree.fromstring(document)
    for child in list(root):
        # A style element inside an SVG would hold for the whole page; the page says the same in its own.
        defines_style = any(_NAMESPACE.sub("", item.tag) == "style" for item in child)
        if defines_style or _NAMESPACE.sub("", child.tag) == "metadata":
            root.remove(child)
    used = {
        id_ for item in root.iter() for value in item.attrib.values() for id_ in _REFERENCE.findall(value)
    }
    owned = (item.attrib["id"] for item in root.iter() if item.attrib.get("id") in used)
    names = {old: f"{name}-{number}" for number, old in enumerate(owned)}
    for item in root.iter():
        item.tag = _NAMESPACE.sub("", item.tag)
        item.attrib = {
            _NAMESPACE.sub("", key): _renamed(value, names) if key != "id" else names[value]
            for key, value in item.attrib.items()
            if key != "id" or value in names
        }
        if item.text is not None and not item.text.strip():
            item.text = None
        item.tail = "\n" if item.tail else None
    view = root.attrib["viewBox"]
    root.attrib = {"viewBox": view, "role": "img", "aria-label": printable(label, limit=2000)}
    return Markup(ElementTree.tostring(root, encoding="unicode").strip())  # ElementTree has escaped it


def _renamed(value: str, names: dict[str, str]) -> str:
    """Return an attribute that may refer to an id; a bare colour such as #2c6ba0 is left alone."""
    return _REFERENCE.sub(lambda found: names.get(found.group(), found.group()), value)
