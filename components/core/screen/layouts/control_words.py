"""Labels that mean a negative control, or a well without anything, where no table says roles. Pure."""

from __future__ import annotations

import re

_UNTREATED = frozenset(("dmso", "vehicle", "mock", "negcon", "untreated", "nontreated", "non treated"))
_NO_TARGET = frozenset(
    ("no treatment", "no drug", "no compound", "scramble", "scrambled", "nontargeting", "non targeting", "ntc")
)
_SURE = _UNTREATED | _NO_TARGET
_MAYBE = frozenset(("neg control", "negative control", "neg ctrl", "negative ctrl", "neg con", "control negative"))
_BESIDE = frozenset(("control", "ctrl", "only", "alone", "treated", "neg", "negative", "sirna", "guide", "sgrna"))
_EMPTY = frozenset(("empty", "blank", "empty well", "no cells", "unused"))
_LIKE = frozenset(
    ("control", "ctrl", "neg", "negative", "negcon", "pbs", "water", "h2o", "medium", "media", "solvent", "dmso")
)
_AMOUNT = re.compile(
    r"\d+(?:[.,]\d+)?\s*(?:%|(?:v/v|[munpµμ]?m|[munpµμ]?g/ml|percent|h(?:rs?|ours?)?)(?![^\W\d_]))?(?:\s*\(?v/v\)?)?"
)


def _words(label: str) -> list[str]:
    plain = _AMOUNT.sub(" ", label.casefold())
    return [word for word in re.split(r"[\W\d_]+", plain) if word]


def is_negative(label: str) -> bool:
    """Whether a label is that of a negative control: DMSO, `DMSO 0.1%`, `Vehicle (DMSO)`, `neg. control`, `non-targeting siRNA`."""
    words = _words(label)
    text = " ".join(words)
    if text in _MAYBE:
        return True
    for sure in _SURE:
        text = re.sub(rf"\b{sure}\b", "*", text)
    rest = set(text.split())
    return "*" in rest and rest <= {"*", *_BESIDE}


def is_empty(label: str) -> bool:
    """Whether a label says that there is nothing in the well."""
    return " ".join(_words(label)) in _EMPTY


def is_like_control(label: str) -> bool:
    """Whether a label that is a treatment's has a word of controls."""
    return not _LIKE.isdisjoint(_words(label.replace("H2O", "water")))
