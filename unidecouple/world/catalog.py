"""Contents of synthetic scenes: 36 object classes in six themes, six colours, four relations.

Each class is one OpenMoji drawing (CC BY-SA 4.0, https://openmoji.org), named here by its Unicode code point.
Themes make co-occurrence real: POPE's adversarial sampling needs objects that usually come together.
"""

from __future__ import annotations

import difflib

THEMES: dict[str, dict[str, str]] = {
    "farm": {"cow": "1F404", "pig": "1F416", "sheep": "1F411", "rooster": "1F413", "duck": "1F986", "tractor": "1F69C"},
    "kitchen": {"apple": "1F34E", "carrot": "1F955", "cup": "2615", "egg": "1F95A", "cheese": "1F9C0", "cake": "1F370"},
    "road": {"car": "1F697", "bus": "1F68C", "bicycle": "1F6B2", "truck": "1F69A", "motorcycle": "1F3CD", "train": "1F682"},
    "home": {"couch": "1F6CB", "chair": "1FA91", "television": "1F4FA", "lamp": "1F4A1", "book": "1F4D6", "door": "1F6AA"},
    "sport": {"ball": "26BD", "glove": "1F94A", "guitar": "1F3B8", "trophy": "1F3C6", "kite": "1FA81", "skate": "26F8"},
    "wild": {"lion": "1F981", "elephant": "1F418", "snake": "1F40D", "turtle": "1F422", "butterfly": "1F98B", "tree": "1F333"},
}
"""theme -> class name -> OpenMoji code point."""

CODE_POINTS: dict[str, str] = {name: code for theme in THEMES.values() for name, code in theme.items()}
CLASSES: tuple[str, ...] = tuple(CODE_POINTS)
THEME_OF: dict[str, str] = {name: theme for theme, names in THEMES.items() for name in names}

NEW_WORDS: dict[str, str] = {
    "blick": "cow",
    "dax": "carrot",
    "fep": "bus",
    "gazzer": "lamp",
    "koba": "guitar",
    "toma": "turtle",
    "wug": "duck",
    "zib": "book",
}
"""Invented names -> the class that each names, for ``new_words.py``; no base knows them."""

COLOR_RAMPS: dict[str, tuple[str, str, str, str]] = {
    "red": ("#f29a8e", "#ea5a47", "#d22f27", "#8a1c1c"),
    "yellow": ("#fdf17c", "#fcea2b", "#f1b31c", "#a8760b"),
    "green": ("#cfe27a", "#b1cc33", "#5c9e31", "#2f5e17"),
    "blue": ("#aedcfa", "#92d3f5", "#4a9bd8", "#1e50a0"),
    "purple": ("#cbb6de", "#b399c8", "#8967aa", "#53337a"),
    "brown": ("#cda878", "#b58550", "#8a5a2c", "#4f3421"),
}
"""colour name -> four tones from light to dark; the first three inner ones are OpenMoji's own palette."""
COLORS: tuple[str, ...] = tuple(COLOR_RAMPS)

RELATIONS: tuple[str, ...] = ("left of", "right of", "above", "below")
"""GenEval's four relations, spelled as its prompts spell them."""

NUMBER_WORDS: tuple[str, ...] = ("zero", "one", "two", "three", "four")
MAX_OBJECTS = 4

_IRREGULAR_PLURALS = {"sheep": "sheep", "bus": "buses"}


def plural(name: str) -> str:
    """Plural of a class name ("sheep" stays, "bus" gives "buses")."""
    return _IRREGULAR_PLURALS.get(name, name[:-1] + "ies" if name.endswith("y") else name + "s")


def article(name: str) -> str:
    """Either "a" or "an", by the first letter of ``name``."""
    return "an" if name[0] in "aeiou" else "a"


def require(kind: str, name: str, known: tuple[str, ...]) -> str:
    """Return ``name`` if it is in ``known``.

    Raises:
        ValueError: it is not; the message offers the nearest known name.
    """
    if name in known:
        return name
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    raise ValueError(f"unknown {kind} {name!r}: {hint}")
