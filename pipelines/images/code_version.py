"""Which code made a result: the git commit of a checkout, else the package's version, with a digest of the sources."""

from __future__ import annotations

import subprocess
from pathlib import Path

from components.core.storage.digests import code_digest
from components.image import VERSION

ROOT = Path(__file__).resolve().parents[2]
"""The checkout, where the package runs from one."""
UNCOMMITTED = "+changes"
"""Behind a commit: something is not committed."""


def code_version() -> str:
    """For example `0.1.0 (commit 1a2b3c4d5e6f+changes, sources 0123456789abcdef)`."""
    commit = code_commit()
    return f"{VERSION} ({f'commit {commit}, ' if commit else ''}sources {sources_digest()})"


def code_commit() -> str:
    """The checkout's commit in 12 digits, with `+changes` where something is not committed; empty without a checkout."""
    commit = _git(ROOT, "rev-parse", "--short=12", "HEAD") if (ROOT / ".git").exists() else ""
    return f"{commit}{UNCOMMITTED}" if commit and _git(ROOT, "status", "--porcelain") else commit


def sources_digest() -> str:
    """What tells the sources of this package from others, wherever they are installed: 16 digits."""
    return code_digest("components", "pipelines")[:16]


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
