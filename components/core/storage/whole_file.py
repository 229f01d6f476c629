"""Files that appear whole or not at all. Local files only."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file under another name beside it, then gives it its own; an earlier file stays until then.

    Args:
        path: the file, in a folder that is there.
        content: text is written as UTF-8.

    Raises:
        OSError: it cannot be written; nothing of it is left.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        partial.replace(path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
