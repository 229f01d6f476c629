"""Whether the recorded images are in the engine here and in their registry. A registry is asked for a digest by its HTTP API."""

from __future__ import annotations

import importlib
import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from components.core.errors import InputError
from pipelines.doctor.finding import Finding
from pipelines.image_record import read_images

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


def check_images(record: Path) -> Iterator[Finding]:
    """Looks for each image of a record.

    Args:
        record: images.json.
    """
    found = read_images(record)
    yield Finding("images", "ok", f"{record}: version {found.version}, commit {found.commit}")
    for target, image in sorted(found.images.items()):
        yield _in_registry(f"{target} image, registry", image.reference)
        yield _in_engine(f"{target} image, engine", image.reference)


def _in_engine(what: str, reference: str) -> Finding:
    try:
        docker = importlib.import_module("docker")
    except ImportError:
        return Finding(what, "warning", "not looked at: the Python package docker is not installed")
    try:
        client = docker.from_env(timeout=SECONDS)
        client.images.get(reference)
    except docker.errors.ImageNotFound:
        return Finding(what, "warning", f"not pulled; only `run --runner docker` needs it (docker pull {reference})")
    except docker.errors.DockerException as error:
        return Finding(
            what, "warning", f"no engine to ask ({type(error).__name__}); only `run --runner docker` needs one"
        )
    return Finding(what, "ok", "is there")


def _in_registry(what: str, reference: str) -> Finding:
    registry, name, digest = split_reference(reference)
    try:
        status = _ask(registry, name, digest)
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", None) or error
        return Finding(what, "warning", f"{registry} cannot be reached from here ({why}); the cluster must reach it")
    if status == 200:
        return Finding(what, "ok", f"{registry}/{name} has {digest[:19]}...")
    if status in (401, 403):
        return Finding(what, "warning", f"{registry} asks for a login to show {name} ({status}), so it was not checked")
    if status == 404:
        return Finding(what, "failed", f"{registry}/{name} has no {digest}; push again with `cellsignal images push`")
    return Finding(what, "warning", f"{registry} answers {status} when asked for {name}")


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


def _ask(registry: str, name: str, digest: str) -> int:
    """Status of a HEAD request for the digest, with the token that a public repository gives to anybody."""
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
