"""Sends the images of a commit to a registry, and records the digests that it gave them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from components.core.errors import InputError, StepError
from components.image import VERSION
from pipelines.images.code_version import UNCOMMITTED, sources_digest
from pipelines.images.engine import check_image, connect, one_line
from pipelines.images.names import checkout, repository, tag_of
from pipelines.images.record import Image, ImageRecord, Target, write_images

if TYPE_CHECKING:
    from docker import DockerClient

TARGETS: tuple[Target, ...] = ("cpu", "gpu")
_REFUSED = ("denied", "unauthorized", "authentication required", "no basic auth")


def push(registry: str, record: Path, console: Console) -> ImageRecord:
    """Pushes both images of the checkout's commit, and writes the record once both are there.

    Args:
        registry: HOST[:PORT][/PATH] that the names go below.
        record: file to write.
        console: where progress is shown.

    Raises:
        InputError: no checkout, no engine, an image that was not built or holds other sources, a registry that refuses.
        StepError: the registry failed.
    """
    if "://" in registry or not registry.strip("/"):
        raise InputError(f"--registry {registry}: write it as HOST/PATH, without https://")
    if not record.resolve().parent.is_dir():
        raise InputError(f"--record {record}: there is no such folder; make it first")
    _, commit = checkout()
    tag = tag_of(commit)
    client = connect()
    sources = sources_digest()
    for target in TARGETS:
        check_image(client, f"{repository(target)}:{tag}", sources, "this checkout")
    if commit.endswith(UNCOMMITTED):
        console.print(f"warning: {tag}: the images hold changes that are not committed", style="yellow", soft_wrap=True)
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
            f"--record {record}: cannot be written ({error.strerror}), though both images are pushed; name another file"
        ) from None
    return found


def _push(client: DockerClient, local: str, remote: str, tag: str) -> str:
    """Pushes one image; returns the digest of what the registry holds."""
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
        raise StepError(f"{remote}:{tag}: the registry did not say the digest of what it took; push again")
    return digest


def _refusal(name: str, said: str) -> Exception:
    line = " ".join(said.split())
    host = name.split("/")[0]
    if any(word in line.lower() for word in _REFUSED):
        return InputError(
            f"{name}: the registry refuses ({line}); log in with `docker login {host}`, and check that you may write there"
        )
    if "invalid reference" in line or "repository name" in line:
        return InputError(f"--registry: {name} is not a name of an image ({line}); write HOST/PATH in lower case")
    return StepError(f"{name}: cannot be pushed ({line}); check --registry and the network, then push again")
