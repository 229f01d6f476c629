"""The digest of source code changes with it, and with nothing else."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from components.core.storage import digests
from components.core.storage.digests import code_digest


def test_code_digest_follows_sources_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = "components.core.storage.opening"
    loaded = module in sys.modules
    both = code_digest(module, "components.core.prior")
    assert both == code_digest("components.core.prior", module, module) != code_digest(module)
    assert (module in sys.modules) == loaded, "nothing is imported"
    with pytest.raises(FileNotFoundError, match=r"components/core/no_such_room\.py"):
        code_digest("components.core.no_such_room")
    monkeypatch.setattr(digests, "_ROOT", tmp_path)
    package = tmp_path / "package"
    (package / "inner").mkdir(parents=True)
    (package / "inner" / "model.py").write_text("WIDTH = 1\n")
    digest = code_digest("package")
    (package / "notes.txt").write_text("not code")
    assert code_digest("package") == digest
    (package / "inner" / "model.py").write_text("WIDTH = 2\n")
    changed = code_digest("package")
    assert changed != digest
    (package / "inner" / "model.py").rename(package / "inner" / "net.py")
    assert code_digest("package") not in (digest, changed)
