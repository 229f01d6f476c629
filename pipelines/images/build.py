"""Builds the images through the engine's API, from the files that .dockerignore admits.

Times and owners are left out of the context, so that a file counts as changed only if its content has changed.
"""

from __future__ import annotations

import re
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Any, TextIO

from rich.console import Console

from components.core.errors import InputError, StepError
from components.image import VERSION
from pipelines.images.code_version import (
    CURRENT,
    UNCOMMITTED,
    Target,
    checkout,
    repository,
    sources_digest,
    tag_of,
)
from pipelines.images.engine import connect, one_line

DOCKERFILE = "docker/Dockerfile"
IGNORE = ".dockerignore"
_BASE_REFUSED = re.compile(
    r"pull access denied|manifest unknown|not found: manifest|invalid reference|no such host|registry"
)


@dataclass(frozen=True)
class BuiltImage:
    """One image on this machine."""

    target: Target
    name: str
    size: int
    seconds: float


@dataclass(frozen=True)
class BuildSettings:
    """How to build.

    Attributes:
        base: image to build on; None for the Dockerfile's.
        network: the build's network (`host` if a proxy or a package index listens on this machine); None for the engine's.
        pip_conf: pip's configuration for the build only; None for docker/pip.conf, if there is one.
        certificate: certificates to trust during the build only; None for docker/ca.crt, if there is one.
        log: file for the output of the build.
    """

    base: str | None
    network: str | None
    pip_conf: Path | None
    certificate: Path | None
    log: Path


def build(targets: Sequence[Target], settings: BuildSettings, console: Console) -> list[BuiltImage]:
    """Builds images of the checkout, and tags them.

    Raises:
        InputError: no checkout, no engine, a missing file, or no such base image.
        StepError: the build failed.
    """
    root, commit = checkout()
    options = {"docker/pip.conf": settings.pip_conf, "docker/ca.crt": settings.certificate}
    extra = {name: _content(path) for name, path in options.items() if path is not None}
    client = connect()
    if commit.endswith(UNCOMMITTED):
        console.print(
            f"warning: the checkout has uncommitted changes; the tag says so: {tag_of(commit)}",
            style="yellow",
            soft_wrap=True,
        )
    arguments = {"VERSION": VERSION, "COMMIT": commit, "SOURCES": sources_digest()}
    if settings.base:
        arguments["BASE_IMAGE"] = settings.base
    built = []
    with _open_log(settings.log) as log:
        for target in targets:
            started = time.monotonic()
            name = f"{repository(target)}:{tag_of(commit)}"
            with pack_context(root, extra) as context, console.status(f"{name}: building") as status:
                answer = client.api.build(
                    fileobj=context,
                    custom_context=True,
                    dockerfile=DOCKERFILE,
                    target=target,
                    tag=name,
                    buildargs=arguments,
                    network_mode=settings.network,
                    rm=True,
                    forcerm=True,
                    decode=True,
                )
                for line in _lines(answer, name, settings, log):
                    if line.startswith("Step "):
                        status.update(f"{name}: {line[:100]}")
            image = client.images.get(name)
            image.tag(*CURRENT[target].split(":"))
            built.append(BuiltImage(target, name, image.attrs["Size"], time.monotonic() - started))
    return built


def pack_context(root: Path, extra: Mapping[str, bytes]) -> IO[bytes]:
    """A temporary tar file with the build context, open at its beginning.

    Args:
        root: the checkout.
        extra: files to add, by name in the context; they are written nowhere else.
    """
    from docker.utils.build import exclude_paths

    patterns = [line for line in (root / IGNORE).read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    names = sorted(exclude_paths(str(root), list(filter(None, patterns)), dockerfile=DOCKERFILE))
    packed = tempfile.TemporaryFile(prefix="cellsignal-context-")  # noqa: SIM115 - the caller closes it
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name in names:
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


def _lines(answer: Iterator[dict[str, Any]], name: str, settings: BuildSettings, log: TextIO) -> Iterator[str]:
    """The output of the build, which also goes into the log."""
    from docker.errors import APIError

    try:
        for part in answer:
            text = str(part.get("stream") or part.get("status") or part.get("error") or "")
            log.write(text if text.endswith("\n") or "stream" in part else f"{text}\n")
            if "error" in part:
                raise _failure(part["error"], name, settings)
            yield text
    except APIError as error:
        raise _failure(one_line(error), name, settings) from None


def _failure(message: str, name: str, settings: BuildSettings) -> Exception:
    line = " ".join(message.split())
    if _BASE_REFUSED.search(line):
        which = f"--base-image {settings.base}" if settings.base else "the Dockerfile's BASE_IMAGE"
        return InputError(
            f"{which}: the engine has no such image and cannot pull it ({line}); give another with --base-image"
        )
    return StepError(f"{name}: the build failed ({line}); its output is in {settings.log}")


def _open_log(path: Path) -> TextIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("w", encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror}); set XDG_CACHE_HOME to another folder"
        ) from None


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
