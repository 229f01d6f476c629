"""SHA-256 of files, folders and source code, by which inputs count as the same. Reads local files only."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from components.core.errors import InputError

_ROOT = Path(__file__).resolve().parents[3]


def digest_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal; InputError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def digest_path(path: Path) -> str:
    """SHA-256 of a file's bytes, or of a folder's file names and bytes, whatever its own name; InputError if there is none."""
    if path.is_dir():
        return digest_text(json.dumps([[name, digest_file(path / name)] for name in file_names(path)]))
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    return digest_text(f"file {digest_file(path)}")


def digest_text(text: str) -> str:
    """SHA-256 of a text as UTF-8, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def digest_bytes(data: bytes) -> str:
    """SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def file_names(folder: Path) -> list[str]:
    """Every file below the folder, as a relative path with forward slashes, sorted."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def code_digest(*packages_or_paths: str) -> str:
    """SHA-256 of Python sources, so that a step runs again when its code has changed. Imports nothing.

    Args:
        packages_or_paths: modules or packages of this distribution (`components.core.learning`), or paths of a file
            or folder. A package counts with all modules below it, by name and content. InputError if there is none.
    """
    return digest_text(json.dumps(sorted(_sources(name) for name in set(packages_or_paths))))


def _sources(package_or_path: str) -> list[list[str]]:
    """Name and digest of each source file; of a path outside the package only the last part counts."""
    module = _ROOT.joinpath(*package_or_path.split("."))
    file = module.with_name(f"{module.name}.py")
    outside = Path(package_or_path)
    for path, name in ((module, package_or_path), (file, package_or_path), (outside, outside.name)):
        if path.is_dir():
            sources = sorted(path.rglob("*.py"))
            return [[f"{name}/{source.relative_to(path).as_posix()}", digest_file(source)] for source in sources]
        if path.is_file():
            return [[name, digest_file(path)]]
    raise InputError(f"code digest: {package_or_path!r} is neither a module of this package nor a file or folder")
