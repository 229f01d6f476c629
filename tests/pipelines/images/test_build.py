"""The build context, without an engine."""

from __future__ import annotations

import tarfile
from pathlib import Path

from pipelines.images.build_and_push import pack_context

ROOT = Path(__file__).resolve().parents[3]


def files(root: Path, extra: dict[str, str]) -> dict[str, bytes]:
    with pack_context(root, extra) as packed, tarfile.open(fileobj=packed) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}  # type: ignore[union-attr]


def test_sends_only_what_the_images_contain():
    sent = files(ROOT, {"docker/pip.conf": "[global]\n"})
    assert {name.split("/")[0] for name in sent} == {
        "components", "pipelines", "docker", "pyproject.toml", "README.md", "LICENSE",
    }  # fmt: skip
    assert {name for name in sent if name.startswith("docker/")} == {
        "docker/Dockerfile", "docker/build.lock", "docker/cpu.lock", "docker/gpu.lock", "docker/pip.conf",
    }  # fmt: skip
    assert not [name for name in sent if "__pycache__" in name]
    assert sent["docker/pip.conf"] == b"[global]\n"
    sources = {
        path.relative_to(ROOT).as_posix() for part in ("components", "pipelines") for path in (ROOT / part).rglob("*.*")
    }
    assert {name for name in sources if "__pycache__" not in name and (ROOT / name).is_file()} <= sent.keys()


def test_an_option_replaces_the_file_of_the_checkout(tmp_path: Path):
    (tmp_path / "docker").mkdir()
    (tmp_path / ".dockerignore").write_text("# all but these\n*\n!docker/*.conf\n")
    (tmp_path / "docker" / "Dockerfile").write_text("FROM scratch\n")
    (tmp_path / "docker" / "pip.conf").write_text("own")
    (tmp_path / "secret").write_text("secret")
    assert files(tmp_path, {}) == {"docker/Dockerfile": b"FROM scratch\n", "docker/pip.conf": b"own"}
    assert files(tmp_path, {"docker/pip.conf": "option"})["docker/pip.conf"] == b"option"
