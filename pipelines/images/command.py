"""cellsignal images: builds the steps' images and pushes them to a registry. Imports neither torch nor kfp."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from components.core.command import list_items
from components.core.errors import InputError

images_app = typer.Typer(
    help="Builds the images of the steps, and pushes them to a registry.", no_args_is_help=True, rich_markup_mode=None
)


@images_app.command()
def build(
    target: Annotated[
        list[str] | None, typer.Option(help="cpu (without torch), gpu or all, or several; default: all")
    ] = None,
    base_image: Annotated[
        str | None, typer.Option(help="a Debian or Ubuntu with Python 3.11 instead of the Dockerfile's")
    ] = None,
    network: Annotated[
        str | None,
        typer.Option(help="network of the build, for example host if a proxy or package index is on this machine"),
    ] = None,
    pip_conf: Annotated[
        Path | None, typer.Option(help="pip's configuration (index, find-links); stays out of the image")
    ] = None,
    ca_certificate: Annotated[
        Path | None, typer.Option(help="certificates to trust for packages (PEM); stay out of the image")
    ] = None,
) -> None:
    """Builds images of this checkout, tagged with its commit; the tag says so if there are uncommitted changes."""
    from rich.console import Console

    from components.core.storage.opening import cache_folder
    from pipelines.images.build import BuildSettings
    from pipelines.images.build import build as build_images
    from pipelines.images.push import TARGETS

    log = cache_folder() / "images-build.log"
    settings = BuildSettings(base_image, network, pip_conf, ca_certificate, log)
    console = Console()
    targets = {*list_items("--target", target or ["all"])}
    for name in targets - {*TARGETS, "all"}:
        raise InputError(f"--target {name}: give cpu, gpu or all")
    for image in build_images([each for each in TARGETS if targets & {"all", each}], settings, console):
        console.print(
            f"{image.name}: {image.size / 1e9:.2f} GB in {image.seconds:.0f} s", highlight=False, soft_wrap=True
        )


@images_app.command()
def push(
    registry: Annotated[str, typer.Option(help="HOST[:PORT][/PATH]; log in first, with `docker login`")],
    record: Annotated[Path, typer.Option(help="file for the digests, which compile and submit read")] = Path(
        "images.json"
    ),
) -> None:
    """Pushes both images of this commit, and records their digests."""
    from rich.console import Console

    from pipelines.images.push import push as push_images

    console = Console()
    for image in push_images(registry, record, console).images.values():
        console.print(image.reference, highlight=False, soft_wrap=True)
    console.print(f"recorded in {record}", highlight=False, soft_wrap=True)
