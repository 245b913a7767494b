"""Figures without a display, written atomically, and the text in them: data of any script, never markup."""

from __future__ import annotations

import functools
import unicodedata
from pathlib import Path
from typing import BinaryIO

from anyascii import anyascii
from matplotlib import ft2font, rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.text import Text

from mixer_lightning.files import atomic_write, readable

#: Whether matplotlib joins letters and orders words that run from right to left.
_SHAPES_TEXT = hasattr(ft2font, "__libraqm_version__")


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches, which needs no display and no pyplot."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def lay_out(figure: Figure) -> None:
    """Give everything its place, once for whatever is written into the figure and saved of it from here on."""
    _choose_fonts(figure)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def save_figure(figure: Figure, path: Path) -> None:
    """Replace `path`, a .png or .svg, by the figure: all of it, or nothing. Equal figures give equal bytes."""
    _choose_fonts(figure)
    kind = path.suffix.removeprefix(".")

    def write(file: BinaryIO) -> None:
        with rc_context({"svg.hashsalt": path.name}):
            figure.savefig(file, format=kind, dpi=110, metadata={"Date": None} if kind == "svg" else None)

    atomic_write(path, write)


def label(text: str, width: int | None = None) -> str:
    """A name out of the data as matplotlib is to draw it: in one line, of at most `width` characters.

    What is longer is cut in the middle: names of one data set often differ in their ends alone. Characters that no
    installed font has are transliterated; `$` begins no formula.
    """
    shown = "".join(_drawable(character) for character in unicodedata.normalize("NFC", readable(text)))
    shown = shown or "?" * bool(text)
    if width is not None and len(shown) > width:
        end = width // 2
        shown = f"{shown[: width - 1 - end]}…{shown[len(shown) - end :]}"
    return shown.replace("$", r"\$")


def _drawable(character: str) -> str:
    """The character, or what stands for it where it cannot be drawn."""
    category = unicodedata.category(character)
    if character.isspace() or category == "Cc":
        return " "
    if ord(character) in _default_glyphs() or _family_with(character) is not None:
        runs_leftwards = unicodedata.bidirectional(character) in ("R", "AL")
        if _SHAPES_TEXT or not runs_leftwards:
            return character
    return anyascii(character)


@functools.cache
def _default_glyphs() -> frozenset[int]:
    return frozenset(get_font(findfont(FontProperties())).get_charmap())


@functools.cache
def _family_with(character: str) -> str | None:
    """The family of an installed upright font that has a character; None where there is none."""
    fonts = (font for font in fontManager.ttflist if font.style == "normal" and not _is_symbolic(font.name))
    return next((font.name for font in fonts if ord(character) in _glyphs(font.fname)), None)


def _is_symbolic(family: str) -> bool:
    """Whether a font draws a box, or something else, for what it claims to have."""
    return "lastresort" in family.lower().replace(" ", "") or family.startswith(
        ("cm", "STIXSize", "STIXNonUni")
    )


@functools.cache
def _glyphs(path: str) -> frozenset[int]:
    try:
        return frozenset(get_font(path).get_charmap())
    except (OSError, RuntimeError):  # a damaged font, or of another format
        return frozenset()


def _choose_fonts(figure: Figure) -> None:
    """Let every text that the default font cannot draw fall back on families that can."""
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        missing = {c for c in text.get_text() if not c.isspace() and ord(c) not in _default_glyphs()}
        families = sorted({family for c in missing if (family := _family_with(c)) is not None})
        if families:
            text.set_fontfamily([*text.get_fontfamily(), *families])
