"""SHA-256 of files, texts and source code, by which inputs count as the same. Reads local files only."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[3]


def digest_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_text(text: str) -> str:
    """SHA-256 of a text as UTF-8, in hexadecimal."""
    return digest_bytes(text.encode())


def digest_bytes(data: bytes) -> str:
    """SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def file_names(folder: Path) -> list[str]:
    """Every file below the folder, as a relative path with forward slashes, sorted."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def code_digest(*modules: str) -> str:
    """SHA-256 of the sources of modules, so that a step runs again when its code has changed. Imports nothing.

    Args:
        modules: modules or packages of this distribution (`components.core.learning`); a package counts with all modules below it,
            by name and content.
    """
    return digest_text(json.dumps(sorted(_sources(module) for module in set(modules))))


def _sources(module: str) -> list[list[str]]:
    """Name and digest of each source file."""
    path = _ROOT.joinpath(*module.split("."))
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    return [[file.relative_to(_ROOT).as_posix(), digest_file(file)] for file in files]
