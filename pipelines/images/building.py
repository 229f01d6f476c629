"""Builds the images through the engine's API."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console

from components.core.errors import InputError, StepError
from components.core.files import locked
from components.image import VERSION
from pipelines.images.code_version import UNCOMMITTED, sources_digest
from pipelines.images.context import DOCKERFILE, pack_context
from pipelines.images.engine import connect, one_line
from pipelines.images.names import CURRENT, checkout, repository, tag_of
from pipelines.images.record import Target

_BASE_REFUSED = re.compile(
    r"pull access denied|manifest unknown|not found: manifest|invalid reference|no such host|registry"
)


@dataclass(frozen=True)
class Built:
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
        network: the build's network (`host` where a proxy or an index listens on this machine); None for the engine's.
        pip_conf: pip's configuration for the build alone.
        certificate: certificates of those who may serve packages, for the build alone.
        log: file that gets what the build prints; another one beside it while a second build runs.
    """

    base: str | None
    network: str | None
    pip_conf: Path | None
    certificate: Path | None
    log: Path


def build(targets: Sequence[Target], settings: BuildSettings, console: Console) -> list[Built]:
    """Builds images of the checkout as it is, and names them.

    Raises:
        InputError: no checkout, no engine, a file that is not there, a base image that cannot be had.
        StepError: the build failed.
    """
    root, commit = checkout()
    # By docker/pip.conf or docker/ca.crt of the checkout itself where no option names another.
    given = {"docker/pip.conf": settings.pip_conf, "docker/ca.crt": settings.certificate}
    extra = {name: _content(path) for name, path in given.items() if path is not None}
    client = connect()
    if commit.endswith(UNCOMMITTED):
        console.print(
            f"warning: the checkout has changes that are not committed, and so will the tag {tag_of(commit)}",
            style="yellow",
            soft_wrap=True,
        )
    arguments = {"VERSION": VERSION, "COMMIT": commit, "SOURCES": sources_digest()}
    if settings.base:
        arguments["BASE_IMAGE"] = settings.base
    built = []
    with _open_log(settings.log) as log:
        for target in targets:
            begun = time.monotonic()
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
            built.append(Built(target, name, image.attrs["Size"], time.monotonic() - begun))
    return built


def _lines(answer: Iterator[dict[str, Any]], name: str, settings: BuildSettings, log: TextIO) -> Iterator[str]:
    """What the build prints, also into the log; its failure is an error."""
    from docker.errors import APIError

    try:
        for part in answer:
            text = str(part.get("stream") or part.get("status") or part.get("error") or "")
            log.write(text if text.endswith("\n") or "stream" in part else f"{text}\n")
            if "error" in part:
                raise _failure(part["error"], name, settings, log)
            yield text
    except APIError as error:
        raise _failure(one_line(error), name, settings, log) from None


def _failure(said: str, name: str, settings: BuildSettings, log: TextIO) -> Exception:
    line = " ".join(said.split())
    if _BASE_REFUSED.search(line):
        which = f"--base-image {settings.base}" if settings.base else "the Dockerfile's BASE_IMAGE"
        return InputError(
            f"{which}: the engine has no such image and cannot pull it ({line}); name one with --base-image"
        )
    return StepError(f"{name}: the build failed ({line}); all that it printed is in {log.name}")


@contextmanager
def _open_log(path: Path) -> Iterator[TextIO]:
    """The log, or a numbered one beside it while another build writes to it."""
    with ExitStack() as held:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            for number in itertools.count(1):
                log = path if number == 1 else path.with_stem(f"{path.stem}-{number}")
                with suppress(BlockingIOError):
                    held.enter_context(locked(log, wait=False))
                    file = held.enter_context(log.open("w", encoding="utf-8"))
                    break
        except OSError as error:
            raise InputError(
                f"{path}: cannot be written ({error.strerror}); set XDG_CACHE_HOME to a folder that can"
            ) from None
        yield file


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
