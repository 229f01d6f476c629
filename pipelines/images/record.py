"""The built images by digest, which `images push` records and `compile` pins, and whether their registry has them.

{"schema": 2, "version": "0.1.0", "commit": "1a2b3c…", "references": {"cpu": "registry/cellsignal-cpu@sha256:…", "gpu": …}}
"""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from components.core.config import FrozenModel
from components.core.errors import InputError
from components.core.files import write_atomically

RECORD = Path("images.json")
"""Default file of the record."""
SECONDS = 5
DOCKER_HUB = "registry-1.docker.io"
_ACCEPT = ", ".join(
    f"application/vnd.{kind}+json"
    for kind in (
        "oci.image.index.v1",
        "oci.image.manifest.v1",
        "docker.distribution.manifest.list.v2",
        "docker.distribution.manifest.v2",
    )
)


class ImageRecord(FrozenModel):
    """Both images of one build, or none: then they are named by their tags."""

    schema_: Literal[2] = Field(2, alias="schema")
    version: str = Field(description="version of the package")
    commit: str = Field(description="git commit; +changes if there were uncommitted changes")
    references: dict[str, Annotated[str, Field(pattern=r"^[^@\s]+@sha256:[0-9a-f]{64}$")]] = Field(
        description="REGISTRY/NAME@sha256:DIGEST by target, which no later push changes"
    )


def read_images(path: Path) -> ImageRecord:
    """Reads a record.

    Raises:
        InputError: no such file, or not a record of both images.
    """
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: is not a file; `cellsignal images push` writes one")
    try:
        record = ImageRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); `cellsignal images push` writes it") from None
    except ValueError:
        raise InputError(f"{path}: not a record of images; `cellsignal images push` rewrites it") from None
    missing = {"cpu", "gpu"} - record.references.keys()
    if missing:
        raise InputError(f"{path}: without the {sorted(missing)[0]} image; `cellsignal images push` rewrites it")
    return record


def write_images(record: ImageRecord, path: Path) -> None:
    """Writes a record atomically."""
    write_atomically(path, record.model_dump_json(by_alias=True, indent=2) + "\n")


def check_pushed(reference: str) -> None:
    """Refuses an image that its registry does not have, for which a pod would wait until its deadline.

    A registry that cannot be reached from here, or requires a login, may still serve the cluster.

    Args:
        reference: REGISTRY/NAME@sha256:DIGEST.

    Raises:
        InputError: the registry does not have it.
    """
    try:
        status = request_status(reference)
    except (OSError, ValueError):
        return
    if status == 404:
        raise InputError(missing_image(reference))


def missing_image(reference: str) -> str:
    """The message about an image that its registry does not have."""
    registry, name, digest = split_reference(reference)
    return f"{registry}/{name} has no {digest}; push again with `cellsignal images push`"


def split_reference(reference: str) -> tuple[str, str, str]:
    """Registry, repository and digest of REGISTRY/NAME@sha256:DIGEST, as engines read it."""
    name, _, digest = reference.partition("@")
    first, slash, rest = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return first, rest, digest
    return DOCKER_HUB, name if slash else f"library/{name}", digest


def request_status(reference: str) -> int:
    """HTTP status of a HEAD request for an image, with the token that a public repository gives to anonymous users.

    Raises:
        OSError: no connection.
        ValueError: not an answer of a registry.
    """
    registry, name, digest = split_reference(reference)
    local = registry.partition(":")[0] in ("localhost", "127.0.0.1")
    url = f"{'http' if local else 'https'}://{registry}/v2/{name}/manifests/{digest}"
    status, challenge = _head(url, {})
    if status == 401 and challenge.lower().startswith("bearer "):
        token = _anonymous_token(challenge)
        if token:
            status, _ = _head(url, {"Authorization": f"Bearer {token}"})
    return status


def _head(url: str, headers: dict[str, str]) -> tuple[int, str]:
    request = urllib.request.Request(url, method="HEAD", headers={"Accept": _ACCEPT, **headers})
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            return int(answer.status), ""
    except urllib.error.HTTPError as error:
        return error.code, error.headers.get("WWW-Authenticate", "")


def _anonymous_token(challenge: str) -> str:
    parameters = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    realm = parameters.pop("realm", "")
    if not realm.startswith("https://"):
        return ""
    try:
        with urllib.request.urlopen(f"{realm}?{urllib.parse.urlencode(parameters)}", timeout=SECONDS) as answer:
            content = json.load(answer)
    except urllib.error.HTTPError:
        return ""
    return str(content.get("token") or content.get("access_token") or "")
