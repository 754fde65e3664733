"""Captions: text about an image, a phrasing a line."""

import unicodedata

from .images import BadImage

LIMIT = 10_000  # characters; a text encoder reads no more of one
_BLANK = "\u115f\u1160\u2800\u3164\uffa0\ufffc\ufffd"  # fillers, and what stands for something else
VISIBLE = rf"[\p{{L}}\p{{N}}\p{{P}}\p{{S}}&&[^{_BLANK}]]"  # of `has_text`, as Java has it


def has_text(text: str) -> bool:
    """Whether a person sees anything: spaces, marks that only place or direct other characters, and fillers are
    nothing.
    """
    return any(unicodedata.category(character)[0] in "LNPS" and character not in _BLANK for character in text)


def phrasings(caption: str | None) -> str:
    """The lines of a caption that have text, as they are. Raises `BadImage` where there are none, or it is too long."""
    caption = caption or ""
    if len(caption) > LIMIT:
        raise BadImage(f"caption of {len(caption)} characters, over the limit of {LIMIT}")
    lines = [line for line in caption.split("\n") if has_text(line)]
    if not lines:
        raise BadImage("no caption, in a dataset with captions")
    return "\n".join(lines)
