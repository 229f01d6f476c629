"""An image registry, asked by its HTTP API whether it has a digest. Imports nothing that is not Python's own."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.parse
import urllib.request

from components.core.errors import InputError

SECONDS = 10
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


def check_pushed(reference: str) -> None:
    """Refuses an image that its registry says it does not have: a pod would wait for it until its run's deadline.

    A registry that cannot be reached from here, or asks for a login, may serve the cluster all the same.

    Args:
        reference: REGISTRY/NAME@sha256:DIGEST.

    Raises:
        InputError: it is not there.
    """
    try:
        status = ask(*split_reference(reference))
    except (OSError, ValueError):
        return
    if status == 404:
        raise InputError(missing(reference))


def missing(reference: str) -> str:
    """What to do about an image that is not there."""
    registry, name, digest = split_reference(reference)
    return f"{registry}/{name} has no {digest}; push again with `cellsignal images push`"


def split_reference(reference: str) -> tuple[str, str, str]:
    """Registry, repository and digest of REGISTRY/NAME@sha256:DIGEST, as engines read it.

    Raises:
        InputError: no digest.
    """
    name, at, digest = reference.partition("@")
    if not at:
        raise InputError(f"{reference}: an image by digest is expected")
    first, slash, rest = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return first, rest, digest
    return DOCKER_HUB, name if slash else f"library/{name}", digest


def ask(registry: str, name: str, digest: str) -> int:
    """Status of a HEAD request for the digest, with the token that a public repository gives to anybody.

    Raises:
        OSError: no connection.
        ValueError: no answer of a registry.
    """
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
    told = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    realm = told.pop("realm", "")
    if not realm.startswith("https://"):
        return ""
    try:
        with urllib.request.urlopen(f"{realm}?{urllib.parse.urlencode(told)}", timeout=SECONDS) as answer:
            found = json.load(answer)
    except urllib.error.HTTPError:
        return ""
    return str(found.get("token") or found.get("access_token") or "")
