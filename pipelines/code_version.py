"""Which code made a result: the git commit of a checkout, else the package's version, with a digest of the sources."""

from __future__ import annotations

import subprocess
from pathlib import Path

from components.core.storage.digests import code_digest
from components.image import VERSION


def code_version() -> str:
    """For example `0.1.0 (commit 1a2b3c4d5e6f+changes, sources 0123456789abcdef)`."""
    known = [f"sources {code_digest('components', 'pipelines')[:16]}"]
    commit = code_commit()
    if commit:
        known.insert(0, f"commit {commit}")
    return f"{VERSION} ({', '.join(known)})"


def code_commit() -> str:
    """For example `1a2b3c4d5e6f`, or `1a2b3c4d5e6f+changes` where some are not committed; empty without a checkout."""
    root = Path(__file__).resolve().parents[1]
    commit = _git(root, "rev-parse", "--short=12", "HEAD") if (root / ".git").exists() else ""
    return f"{commit}+changes" if commit and _git(root, "status", "--porcelain") else commit


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
