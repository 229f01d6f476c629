"""What the engine gets to build from: the files that .dockerignore lets through, and what only the build needs.

Times and owners are left out, so that a file counts as changed when its content has.
"""

from __future__ import annotations

import tarfile
import tempfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import IO

from docker.utils.build import exclude_paths

DOCKERFILE = "docker/Dockerfile"
IGNORE = ".dockerignore"


def pack_context(root: Path, extra: Mapping[str, bytes]) -> IO[bytes]:
    """A tar file in a temporary place, at its beginning.

    Args:
        root: the checkout.
        extra: files to add, by name in the context; they are written nowhere else.
    """
    ignored = [line for line in (root / IGNORE).read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    named = sorted(exclude_paths(str(root), list(filter(None, ignored)), dockerfile=DOCKERFILE))
    packed = tempfile.TemporaryFile(prefix="cellsignal-context-")  # noqa: SIM115 - the caller's to close
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name in named:
            path = root / name
            if name not in (*extra, IGNORE) and path.is_file():
                _add(tar, name, path.read_bytes(), path.stat().st_mode)
        for name, content in extra.items():
            _add(tar, name, content, 0o600)
    packed.seek(0)
    return packed


def _add(tar: tarfile.TarFile, name: str, content: bytes, mode: int) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    info.mode = 0o755 if mode & 0o100 and mode & 0o001 else 0o644
    tar.addfile(info, BytesIO(content))
