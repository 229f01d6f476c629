"""Pushes the images of a commit to a registry, and records their digests there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from components.core.errors import InputError, StepError
from components.image import VERSION
from pipelines.images.code_version import UNCOMMITTED, Target, checkout, repository, sources_digest, tag_of
from pipelines.images.engine import check_image, connect, one_line
from pipelines.images.record import Image, ImageRecord, write_images

if TYPE_CHECKING:
    from docker import DockerClient

TARGETS: tuple[Target, ...] = ("cpu", "gpu")
_REFUSED = ("denied", "unauthorized", "authentication required", "no basic auth")


def push(registry: str, record: Path, console: Console) -> ImageRecord:
    """Pushes both images of the checkout's commit, then writes the record.

    Args:
        registry: HOST[:PORT][/PATH], the beginning of the images' names.
        record: file to write.
        console: where progress is shown.

    Raises:
        InputError: no checkout, no engine, an image that is missing or contains other sources, or the registry refuses.
        StepError: the registry failed.
    """
    if "://" in registry or not registry.strip("/"):
        raise InputError(f"--registry {registry}: write it as HOST/PATH, without https://")
    if not record.resolve().parent.is_dir():
        raise InputError(f"--record {record}: there is no such folder; create it first")
    _, commit = checkout()
    tag = tag_of(commit)
    client = connect()
    sources = sources_digest()
    for target in TARGETS:
        check_image(client, f"{repository(target)}:{tag}", sources, "this checkout")
    if commit.endswith(UNCOMMITTED):
        console.print(f"warning: {tag}: the images contain uncommitted changes", style="yellow", soft_wrap=True)
    images: dict[Target, Image] = {}
    for target in TARGETS:
        remote = f"{registry.strip('/')}/{repository(target)}"
        with console.status(f"{remote}:{tag}: pushing"):
            digest = _push(client, f"{repository(target)}:{tag}", remote, tag)
        images[target] = Image(reference=f"{remote}@{digest}", tag=tag)
    found = ImageRecord(schema=1, version=VERSION, commit=commit, images=images)
    try:
        write_images(found, record)
    except OSError as error:
        raise InputError(
            f"--record {record}: cannot be written ({error.strerror}), though both images are pushed; give another file"
        ) from None
    return found


def _push(client: DockerClient, local: str, remote: str, tag: str) -> str:
    """Pushes one image; returns its digest in the registry."""
    from docker.errors import DockerException
    from requests.exceptions import RequestException

    digest = ""
    try:
        client.api.tag(local, remote, tag)
        for part in client.api.push(remote, tag=tag, stream=True, decode=True):
            if "error" in part:
                raise _refusal(f"{remote}:{tag}", str(part["error"]))
            digest = part.get("aux", {}).get("Digest", digest)
    except (DockerException, RequestException) as error:
        raise _refusal(f"{remote}:{tag}", one_line(error)) from None
    if not digest:
        raise StepError(f"{remote}:{tag}: the registry did not return the digest of what it stored; push again")
    return digest


def _refusal(name: str, message: str) -> Exception:
    line = " ".join(message.split())
    host = name.split("/")[0]
    if any(word in line.lower() for word in _REFUSED):
        return InputError(
            f"{name}: the registry refuses ({line}); log in with `docker login {host}`, and check that you may write there"
        )
    if "invalid reference" in line or "repository name" in line:
        return InputError(f"--registry: {name} is not a name of an image ({line}); write HOST/PATH in lower case")
    return StepError(f"{name}: cannot be pushed ({line}); check --registry and the network, then push again")
