"""cellsignal images: builds the steps' images and sends them to a registry. Imports neither torch nor kfp."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

images_app = typer.Typer(
    help="Builds the images of the steps, and pushes them to a registry.", no_args_is_help=True, rich_markup_mode=None
)


class Which(StrEnum):
    """Which images."""

    ALL = "all"
    CPU = "cpu"
    GPU = "gpu"


@images_app.command()
def build(
    target: Annotated[Which, typer.Option(help="which image; cpu has no torch")] = Which.ALL,
    base_image: Annotated[
        str | None, typer.Option(help="a Debian or Ubuntu with Python 3.11 instead of the Dockerfile's")
    ] = None,
    network: Annotated[
        str | None, typer.Option(help="of the build, for example host, where a proxy or an index is on this machine")
    ] = None,
    pip_conf: Annotated[
        Path | None, typer.Option(help="pip's configuration (index, find-links); does not get into the image")
    ] = None,
    ca_certificate: Annotated[
        Path | None, typer.Option(help="certificates to trust for packages (PEM); do not get into the image")
    ] = None,
) -> None:
    """Builds images of this checkout, tagged with its commit; `+changes` in it where something is not committed."""
    from rich.console import Console

    from components.core.storage.opening import cache_folder
    from pipelines.images.building import BuildSettings
    from pipelines.images.building import build as build_images

    log = cache_folder() / "images-build.log"
    settings = BuildSettings(base_image, network, pip_conf, ca_certificate, log)
    console = Console()
    targets = [each.value for each in Which if each is not Which.ALL and target in (each, Which.ALL)]
    for image in build_images(targets, settings, console):  # type: ignore[arg-type]
        console.print(
            f"{image.name}: {image.size / 1e9:.2f} GB in {image.seconds:.0f} s", highlight=False, soft_wrap=True
        )


@images_app.command()
def push(
    registry: Annotated[str, typer.Option(help="HOST[:PORT][/PATH]; you are logged in with `docker login`")],
    record: Annotated[Path, typer.Option(help="file that gets the digests, for compile and submit")] = Path(
        "images.json"
    ),
) -> None:
    """Pushes both images of this commit, and records their digests."""
    from rich.console import Console

    from pipelines.images.pushing import push as push_images

    console = Console()
    for image in push_images(registry, record, console).images.values():
        console.print(image.reference, highlight=False, soft_wrap=True)
    console.print(f"recorded in {record}", highlight=False, soft_wrap=True)
