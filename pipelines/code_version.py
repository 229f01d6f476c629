"""Which code made a result: the git commit of a checkout, else the package's version, with a digest of the sources."""

from __future__ import annotations

import subprocess
from pathlib import Path

from components.core.storage.digests import code_digest
from components.image import VERSION


def code_version() -> dict[str, str]:
    """`version`, `code` (digest of both packages' sources) and, in a git checkout, `commit` with `+changes` if dirty."""
    root = Path(__file__).resolve().parents[1]
    known = {"version": VERSION, "code": code_digest("components", "pipelines")[:16]}
    if (root / ".git").exists():
        commit = _git(root, "rev-parse", "--short=12", "HEAD")
        if commit:
            known["commit"] = commit + ("+changes" if _git(root, "status", "--porcelain") else "")
    return known


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
