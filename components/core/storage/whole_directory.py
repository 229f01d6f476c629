"""Directories that appear whole or not at all. Local files only."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_directory(out: Path) -> Iterator[Path]:
    """Yields an empty directory beside `out` that takes its name when the block ends well, and goes when it does not.

    An earlier `out` stays as it is until the new one is complete, then is replaced as a whole.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    making.chmod(0o755)
    try:
        yield making
        if out.exists():
            # A directory cannot be renamed over a full one: move the old one aside first.
            old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent))
            out.replace(old / out.name)
            making.replace(out)
            shutil.rmtree(old)
        else:
            making.replace(out)
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise
