"""cellsignal compile: a configuration in, the pipeline for a cluster out. kfp is loaded where it compiles, torch never."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Mapping
from itertools import dropwhile
from pathlib import Path
from typing import Any

from rich.console import Console

from components.core.config import RunConfig
from components.core.deciding import deciding
from components.core.errors import InputError
from components.core.storage.digests import code_digest, digest_text
from components.core.storage.run_record import RECIPE
from components.core.storage.whole_file import write_whole
from components.image import VERSION
from pipelines.cluster_checks import check_cluster, preemption_remarks
from pipelines.code_version import UNCOMMITTED, code_version
from pipelines.image_record import ImageRecord, read_images

TAGS = "tags"
"""In place of a record of images: their tags, on a cluster whose nodes were given the images by hand."""

HEAD = """\
# Compiled by `cellsignal compile`. A run gives source (s3:// address of the screen), fingerprint (another one where its files
# have changed) and truth (s3:// address of the unlabelled wells' labels, or empty); leave the other parameters as they are.
"""


def run_compile(config: RunConfig, out: Path, images: str, console: Console) -> None:
    """Compiles a configuration into a file.

    Args:
        config: of the run.
        out: file to write, whole or not at all; an earlier one is replaced.
        images: record of the images, or TAGS.
        console: where warnings are shown.

    Raises:
        InputError: a configuration that no cluster can run, no record of images, or a file that cannot be written.
    """
    remarks = [*check_cluster(config), *preemption_remarks(config)]
    _check_writable(out)
    record = images_of(images)
    lineage = known_lineage(config, record)
    text = compiled(config, record, lineage)
    _write(out, text)
    for remark in (*remarks, *lineage["warnings"]):
        console.print(f"warning: {remark}", style="yellow", soft_wrap=True, highlight=False)
    size = len(text.encode()) / 1024
    console.print(f"{out}: {size:.0f} KiB, recipe {lineage[RECIPE][:12]}", soft_wrap=True, highlight=False)


def images_of(given: str) -> ImageRecord | None:
    """The record of the images that a pipeline pins; None for tags.

    Raises:
        InputError: no such file, or not a record of both images.
    """
    if given == TAGS:
        return None
    try:
        return read_images(Path(given))
    except InputError as error:
        raise InputError(f"--images {error}; or give --images {TAGS} for images of version {VERSION} by tag") from None


def known_lineage(config: RunConfig, record: ImageRecord | None) -> dict[str, Any]:
    """What is known of a run before it is submitted: the default of the pipeline's parameter `lineage`.

    Nothing in it is a time, so that the same configuration, code and images compile to the same bytes. normalize adds the run's
    key, the screen and the start.
    """
    references = {target: image.reference for target, image in sorted(record.images.items())} if record else {}
    version = code_version()
    found = []
    if UNCOMMITTED in version:
        found.append("compiled from a tree with changes that are not committed, so that no commit tells what was run")
    if record is None:
        found.append(
            f"images are named by the tag {VERSION}, which may be moved: nothing is pinned, and nothing cached by KFP"
        )
    elif f"commit {record.commit[:12]}" not in version:
        found.append(f"the images are of commit {record.commit}, the pipeline of {version}")
    content = [deciding(config), code_digest("components", "pipelines"), references or VERSION]
    return {
        RECIPE: digest_text(json.dumps(content)),
        "code_version": version,
        "image_digests": references,
        "seeds": {"run": config.seed},
        "warnings": found,
    }


def compiled(config: RunConfig, record: ImageRecord | None, lineage: Mapping[str, Any]) -> str:
    """The pipeline as YAML: its specification, and what Kubernetes is asked for.

    Args:
        config: of the run.
        record: images that are pinned; None for tags.
        lineage: known of the run; the default of the parameter of that name.
    """
    from kfp import compiler

    from pipelines.training import build_cluster_training

    images = {target: image.reference for target, image in record.images.items()} if record else {}
    with tempfile.TemporaryDirectory(prefix="cellsignal-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        file = Path(folder) / "pipeline.yaml"
        pipeline = build_cluster_training(config, images, json.dumps(lineage, sort_keys=True))
        compiler.Compiler().compile(pipeline, str(file))
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    # kfp's own head repeats every default, configurations included.
    return HEAD + "".join(dropwhile(lambda line: line.startswith("#"), lines))


def _check_writable(out: Path) -> None:
    """Before seconds of compiling."""
    if out.suffix not in (".yaml", ".yml"):
        raise InputError(f"--out {out}: Kubeflow takes a file whose name ends in .yaml; give it that ending")
    if out.is_dir():
        raise InputError(f"--out {out}: is a folder; give the name of a file in it")
    if not out.absolute().parent.is_dir():
        raise InputError(f"--out {out}: there is no folder {out.parent}; make it, or choose another")


def _write(out: Path, text: str) -> None:
    try:
        write_whole(out, text)
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written ({error.strerror}); choose another place") from None
