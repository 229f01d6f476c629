"""cellsignal images: builds the steps' images and pushes them to a registry. Imports neither torch nor kfp."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from components.core.command import PathOption, list_items
from components.core.errors import InputError

images_app = typer.Typer(
    help="Builds the images of the steps, and pushes them to a registry.", no_args_is_help=True, rich_markup_mode=None
)


@images_app.command()
def build(
    target: Annotated[
        list[str] | None,
        typer.Option(metavar="TARGET", help="cpu (without torch), gpu or all, or several; default: all"),
    ] = None,
    base_image: Annotated[
        str | None, typer.Option(help="a Debian or Ubuntu with Python 3.11 instead of the Dockerfile's")
    ] = None,
    network: Annotated[
        str | None,
        typer.Option(help="network of the build, for example host if a proxy or package index is on this machine"),
    ] = None,
    pip_conf: Annotated[
        Path | None, PathOption(help="pip's configuration (index, find-links); stays out of the image")
    ] = None,
    ca_certificate: Annotated[
        Path | None, PathOption(help="certificates to trust for packages (PEM); stay out of the image")
    ] = None,
) -> None:
    """Builds images of this checkout, tagged with its commit; the tag says so if there are uncommitted changes."""
    from rich.console import Console

    from pipelines.images import build_and_push

    names = {*list_items("--target", target or ["all"])}
    for name in names - {*build_and_push.TARGETS, "all"}:
        raise InputError(f"--target {name}: give cpu, gpu or all")
    targets = [each for each in build_and_push.TARGETS if names & {"all", each}]
    extra = {"docker/pip.conf": pip_conf, "docker/ca.crt": ca_certificate}
    build_and_push.build(targets, base_image, network, extra, Console())


@images_app.command()
def push(
    registry: Annotated[str, typer.Option(help="HOST[:PORT][/PATH]; log in first, with `docker login`")],
    record: Annotated[Path, PathOption(help="file for the digests, which compile and submit read")] = Path(
        "images.json"
    ),
) -> None:
    """Pushes both images of this commit, and records their digests."""
    from rich.console import Console

    from pipelines.images import build_and_push

    build_and_push.push(registry, record, Console())
