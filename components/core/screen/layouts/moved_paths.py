"""Paths that a table has from another machine: where their files are here, by screen.path_prefixes, and what to set it to."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import islice
from urllib.parse import unquote

import pandas as pd

from components.core.errors import InputError
from components.core.screen.layouts.reading import Reading
from components.core.screen.screen_source import UnreadableError

_WINDOWS = re.compile(r"[A-Za-z]:|//")
_MOST = 3
"""Pairs of prefixes that a message proposes."""


def here(paths: pd.Series[str], prefixes: Mapping[str, str]) -> pd.Series[str]:
    """Paths with forward slashes, the longest prefix that fits replaced; letters' case is ignored in Windows' paths."""
    known = sorted(((_plain(old), new) for old, new in prefixes.items()), key=lambda each: -len(each[0]))
    moved: dict[str, str] = {}  # by folder: a screen has few beside its files
    found = []
    for text in paths.tolist():
        path = from_url(text.replace("\\", "/"))
        folder, slash, name = path.rpartition("/")
        if slash and folder not in moved:
            moved[folder] = _moved(folder + slash, known)
        found.append(moved[folder] + name if slash else name)
    return pd.Series(found, index=paths.index, dtype=paths.dtype)


def from_url(text: str) -> str:
    """The path of a `file:` address; other texts as they are."""
    if not text.startswith("file:"):
        return text
    path = unquote(text.removeprefix("file://").removeprefix("file:").removeprefix("localhost"))
    return path[1:] if re.match(r"/[A-Za-z]:", path) else path


def _plain(folder: str) -> str:
    return folder.replace("\\", "/").rstrip("/")


def _moved(folder: str, known: Sequence[tuple[str, str]]) -> str:
    """Where a folder, which ends in a slash, is now; empty for the screen's own."""
    folder = re.sub(r"^(?:\./+)+", "", folder)
    for old, new in known:
        start, rest = folder[: len(old)], folder[len(old) :]
        alike = start.lower() == old.lower() if _WINDOWS.match(old) else start == old
        if alike and rest.startswith("/"):
            new, rest = _plain(new), rest.lstrip("/")
            return rest if new in ("", ".") else f"{new}/{rest}"
    return folder


def advice_on_missing(reading: Reading, missing: Sequence[str]) -> str:
    """What to set screen.path_prefixes to, if the missing paths are those of another machine; empty if they are not."""
    missing = [path for path in missing if "://" not in path]  # of another store, whose paths are no machine's
    if not missing:
        return ""
    elsewhere = [path for path in missing if path.startswith("/") or _WINDOWS.match(path)]
    pairs = _found_below(reading, elsewhere or missing)
    if not elsewhere and "" in pairs:  # what relative paths begin with cannot be replaced
        pairs = {}
    if not pairs and not elsewhere:
        return ""
    if pairs:
        shown = ", ".join(f"{old or '/'}: {new or '.'}" for old, new in pairs.items())
        return f"all of them are below {reading.source.address()}: set screen.path_prefixes to {{{shown}}}"
    return (
        f"if they moved, set screen.path_prefixes to {{{_common(elsewhere)}: FOLDER}}, FOLDER being the folder or s3:// address "
        "where they are now"
    )


def _common(paths: Sequence[str]) -> str:
    """The folders that all paths begin with; of paths that share none those of the first."""
    folders = [path.rpartition("/")[0].split("/") for path in paths]
    shared = []
    for parts in zip(*folders, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return "/".join(shared if any(shared) else folders[0]) or "/"


def _found_below(reading: Reading, missing: Sequence[str]) -> dict[str, str]:
    """Prefixes to replace and by what, if the screen's folder holds every file, and says which; else empty."""
    try:
        files = reading.paths()
    except (InputError, UnreadableError):
        return {}
    names: dict[str, set[str]] = {}
    for path in files:
        folder, _, name = path.rpartition("/")
        names.setdefault(folder, set()).add(name)
    wanted: dict[str, set[str]] = {}
    for path in missing:
        folder, _, name = path.rpartition("/")
        wanted.setdefault(folder, set()).add(name)
    by_end: dict[tuple[str, ...], list[str]] = {}
    for folder in names:
        for end in _ends(folder):
            by_end.setdefault(end, []).append(folder)
    pairs: dict[str, str] = {}
    for folder, needed in wanted.items():
        cut, having = 0, ""
        for end in _ends(folder):  # the more alike at the end, the likelier; two that are alike leave it open
            found = list(islice((each for each in by_end.get(end, ()) if needed <= names[each]), 2))
            if len(found) > 1:
                return {}
            if found:
                cut, having = len(end), found[0]
                break
        else:
            return {}
        old, new = folder.split("/"), having.split("/") if having else []
        start, last = "/".join(old[: len(old) - cut]), "/".join(new[: len(new) - cut])
        if pairs.setdefault(start, last) != last:
            return {}
    return pairs if len(pairs) <= _MOST else {}


def _ends(folder: str) -> list[tuple[str, ...]]:
    """What a path ends in, in small letters: all its parts first, none last."""
    parts = tuple(folder.lower().split("/"))
    return [parts[n:] for n in range(len(parts) + 1)]
