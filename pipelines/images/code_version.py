"""The version of the code that made a result, and the names of its images.

On this machine an image has two names: NAME:COMMIT, and NAME:VERSION, which the components' signatures contain and which is the
newest build. In a registry it has the first.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Literal

from components.core.errors import InputError
from components.core.storage.digests import code_digest
from components.image import CPU, GPU, VERSION

Target = Literal["cpu", "gpu"]
ROOT = Path(__file__).resolve().parents[2]
"""The checkout, if the package runs from one."""
UNCOMMITTED = "+changes"
"""Suffix of a commit if there are uncommitted changes."""
CURRENT: dict[Target, str] = {"cpu": CPU, "gpu": GPU}
"""Names of the newest build on this machine, by target."""


def code_version() -> str:
    """For example `0.1.0 (commit 1a2b3c4d5e6f+changes, sources 0123456789abcdef)`."""
    commit = code_commit()
    return f"{VERSION} ({f'commit {commit}, ' if commit else ''}sources {sources_digest()})"


def code_commit() -> str:
    """The checkout's commit in 12 digits, with `+changes` if there are uncommitted ones; empty without a checkout."""
    commit = _git("rev-parse", "--short=12", "HEAD") if (ROOT / ".git").exists() else ""
    return f"{commit}{UNCOMMITTED}" if commit and _git("status", "--porcelain") else commit


def sources_digest() -> str:
    """Digest of this package's sources, wherever they are installed: 16 digits."""
    return code_digest("components", "pipelines")[:16]


def checkout() -> tuple[Path, str]:
    """The folder of the checkout, and its commit.

    Raises:
        InputError: this package does not run from a git checkout.
    """
    commit = code_commit()
    if not commit or not (ROOT / "docker" / "Dockerfile").is_file():
        raise InputError(f"{ROOT}: images are built from a git checkout of cellsignal; clone it and run this there")
    return ROOT, commit


def repository(target: Target) -> str:
    """An image's name without a tag."""
    return CURRENT[target].rpartition(":")[0]


def tag_of(commit: str) -> str:
    """A commit as a tag, which cannot contain a plus sign."""
    return commit.replace(UNCOMMITTED, "-changes")


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
