"""Digests change with their content, and with nothing else."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.core.errors import InputError
from components.core.storage import digests
from components.core.storage.digests import code_digest, digest_path

names = st.text("abcdefgh", min_size=1, max_size=4)
trees = st.dictionaries(
    st.tuples(st.sampled_from(["", "x/", "x/y/"]), names).map("".join), st.binary(max_size=40), min_size=1
)


def _write(folder: Path, files: list[tuple[str, bytes]]) -> str:
    for name, data in files:
        path = folder / f"{name}.bin"  # the suffix keeps a file from having a folder's name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return digest_path(folder)


@settings(max_examples=40, deadline=None)
@given(files=trees, data=st.data())
def test_a_folders_digest_follows_names_and_contents_only(files: dict[str, bytes], data: st.DataObject) -> None:
    listed = list(files.items())
    name, content = data.draw(st.sampled_from(listed))
    rest = [item for item in listed if item[0] != name]
    with tempfile.TemporaryDirectory() as top:
        digest = _write(Path(top) / "one", listed)
        assert _write(Path(top) / "another", data.draw(st.permutations(listed))) == digest
        assert _write(Path(top) / "renamed", [*rest, (f"{name}z", content)]) != digest
        assert _write(Path(top) / "changed", [*rest, (name, content + b"!")]) != digest
        assert _write(Path(top) / "more", [*listed, ("new", b"")]) != digest
        if rest:
            assert _write(Path(top) / "less", rest) != digest


def test_a_file_counts_by_its_bytes_wherever_it_is(tmp_path: Path) -> None:
    assert _write(tmp_path / "a", [("x", b"12"), ("y", b"3")]) != _write(tmp_path / "b", [("x", b"1"), ("y", b"23")])
    for name, content in (("one", b"same"), ("other", b"same"), ("third", b"else")):
        (tmp_path / name).write_bytes(content)
    one, other, third = (digest_path(tmp_path / name) for name in ("one", "other", "third"))
    assert one == other != third
    with pytest.raises(InputError, match=r"gone: no such file or folder"):
        digest_path(tmp_path / "gone")


def test_code_digest_follows_sources_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = "components.core.storage.opening"
    loaded = module in sys.modules
    both = code_digest(module, "components.core.prior")
    assert both == code_digest("components.core.prior", module, module) != code_digest(module)
    assert (module in sys.modules) == loaded, "nothing is imported"
    with pytest.raises(InputError, match=r"components/core/no_such_room\.py: cannot be read"):
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
