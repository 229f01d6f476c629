"""Builds the steps' images from this checkout through the engine's API, and pushes them to a registry."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TextIO

from rich.console import Console

from components.core.errors import InputError, StepError
from components.core.files import cache_folder
from components.image import VERSION
from pipelines.images.code_version import CURRENT, UNCOMMITTED, Target, checkout, repository, sources_digest, tag_of
from pipelines.images.engine import check_image, connect, one_line
from pipelines.images.record import ImageRecord, write_images

if TYPE_CHECKING:
    from docker import DockerClient

TARGETS: tuple[Target, ...] = ("cpu", "gpu")
DOCKERFILE = "docker/Dockerfile"
_BASE_REFUSED = re.compile(
    r"pull access denied|manifest unknown|not found: manifest|invalid reference|no such host|registry"
)
_LOGIN_NEEDED = ("denied", "unauthorized", "authentication required", "no basic auth")


def build(
    targets: Sequence[Target], base: str | None, network: str | None, extra: Mapping[str, Path | None], console: Console
) -> None:
    """Builds images of the checkout, tags them with its commit, and prints their names.

    `base` is an image instead of the Dockerfile's, `network` the build's (`host` if a proxy or package index is on this machine).
    `extra` are files by name that only the build sees (None: the checkout's own file, if any). Its output is in the user's cache.

    Raises:
        InputError: no checkout, no engine, a missing file, or no such base image.
        StepError: the build failed.
    """
    root, commit = checkout()
    contents = {name: _read(path) for name, path in extra.items() if path is not None}
    client = connect()
    tag = tag_of(commit)
    _warn_of_changes(commit, f"{tag}: the checkout has uncommitted changes", console)
    arguments = {"VERSION": VERSION, "COMMIT": commit, "SOURCES": sources_digest()}
    if base:
        arguments["BASE_IMAGE"] = base
    log_path = cache_folder() / "images-build.log"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("w", encoding="utf-8") as log:
        for target in targets:
            started = time.monotonic()
            name = f"{repository(target)}:{tag}"
            with pack_context(root, contents) as context, console.status(f"{name}: building") as status:
                answer = client.api.build(
                    fileobj=context,
                    custom_context=True,
                    dockerfile=DOCKERFILE,
                    target=target,
                    tag=name,
                    buildargs=arguments,
                    network_mode=network,
                    rm=True,
                    forcerm=True,
                    decode=True,
                )
                try:
                    for line in _lines(answer, log):
                        if line.startswith("Step "):
                            status.update(f"{name}: {line[:100]}")
                except StepError as failure:
                    raise _build_error(name, str(failure), base, log_path) from None
            image = client.images.get(name)
            image.tag(*CURRENT[target].split(":"))
            seconds = time.monotonic() - started
            console.print(
                f"{name}: {image.attrs['Size'] / 1e9:.2f} GB in {seconds:.0f} s", highlight=False, soft_wrap=True
            )


def pack_context(root: Path, extra: Mapping[str, str]) -> IO[bytes]:
    """A temporary tar file with the build context: the files that .dockerignore admits, and extra ones by name."""
    from docker.utils.build import create_archive, exclude_paths

    lines = (root / ".dockerignore").read_text(encoding="utf-8").splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    names = sorted(exclude_paths(str(root), patterns, dockerfile=DOCKERFILE) - {".dockerignore"})
    packed: IO[bytes] = create_archive(str(root), names, extra_files=list(extra.items()))
    return packed


def push(registry: str, record: Path, console: Console) -> None:
    """Pushes both images of the checkout's commit to HOST[:PORT][/PATH], records their digests in a file, and prints them.

    Raises:
        InputError: no checkout, no engine, an image that is missing or contains other sources, or the registry refuses.
        StepError: the registry failed.
    """
    if "://" in registry or not registry.strip("/"):
        raise InputError(f"--registry {registry}: write it as HOST/PATH, without https://")
    if not record.resolve().parent.is_dir():
        raise InputError(f"--record {record}: there is no such folder; create it first")
    _, commit = checkout()
    tag, client = tag_of(commit), connect()
    for target in TARGETS:
        check_image(client, f"{repository(target)}:{tag}")
    _warn_of_changes(commit, f"{tag}: the images contain uncommitted changes", console)
    references: dict[str, str] = {}
    for target in TARGETS:
        remote = f"{registry.strip('/')}/{repository(target)}"
        with console.status(f"{remote}:{tag}: pushing"):
            digest = _push(client, f"{repository(target)}:{tag}", remote, tag)
        references[target] = f"{remote}@{digest}"
    try:
        write_images(ImageRecord(schema=2, version=VERSION, commit=commit, references=references), record)
    except OSError as error:
        raise InputError(
            f"--record {record}: cannot be written ({error.strerror}), though both images are pushed; give another file"
        ) from None
    for line in (*references.values(), f"recorded in {record}"):
        console.print(line, highlight=False, soft_wrap=True)


def _push(client: DockerClient, local: str, remote: str, tag: str) -> str:
    """Pushes one image; returns its digest in the registry."""
    from docker.errors import DockerException
    from requests.exceptions import RequestException

    digest = ""
    try:
        client.api.tag(local, remote, tag)
        for part in client.api.push(remote, tag=tag, stream=True, decode=True):
            if "error" in part:
                raise _push_error(f"{remote}:{tag}", str(part["error"]))
            digest = part.get("aux", {}).get("Digest", digest)
    except (DockerException, RequestException) as error:
        raise _push_error(f"{remote}:{tag}", one_line(error)) from None
    if not digest:
        raise StepError(f"{remote}:{tag}: the registry did not return the digest of what it stored; push again")
    return digest


def _push_error(name: str, message: str) -> Exception:
    line = " ".join(message.split())
    if any(word in line.lower() for word in _LOGIN_NEEDED):
        login = f"docker login {name.split('/')[0]}"
        return InputError(
            f"{name}: the registry refuses ({line}); log in with `{login}`, and check that you may write there"
        )
    if "invalid reference" in line or "repository name" in line:
        return InputError(f"--registry: {name} is not a name of an image ({line}); write HOST/PATH in lower case")
    return StepError(f"{name}: cannot be pushed ({line}); check --registry and the network, then push again")


def _warn_of_changes(commit: str, message: str, console: Console) -> None:
    if commit.endswith(UNCOMMITTED):
        console.print(f"warning: {message}", style="yellow", soft_wrap=True)


def _lines(answer: Iterator[dict[str, Any]], log: TextIO) -> Iterator[str]:
    """The output of a build, which also goes to the log."""
    from docker.errors import APIError

    try:
        for part in answer:
            text = str(part.get("stream") or part.get("status") or part.get("error") or "")
            log.write(text if text.endswith("\n") or "stream" in part else f"{text}\n")
            if "error" in part:
                raise StepError(part["error"])
            yield text
    except APIError as error:
        raise StepError(one_line(error)) from None


def _build_error(name: str, message: str, base: str | None, log: Path) -> Exception:
    line = " ".join(message.split())
    if _BASE_REFUSED.search(line):
        which = f"--base-image {base}" if base else "the Dockerfile's BASE_IMAGE"
        return InputError(
            f"{which}: the engine has no such image and cannot pull it ({line}); give another with --base-image"
        )
    return StepError(f"{name}: the build failed ({line}); its output is in {log}")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not text in UTF-8") from None
