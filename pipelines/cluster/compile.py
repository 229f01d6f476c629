"""cellsignal compile: a configuration becomes a pipeline for a cluster. Imports kfp only to compile, never torch."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Mapping
from itertools import dropwhile
from pathlib import Path
from typing import Any

from rich.console import Console

from components.core.config import RunConfig, result_config
from components.core.errors import InputError
from components.core.files import write_atomically
from components.core.storage.digests import code_digest, digest_text
from components.core.storage.run_records import RECIPE
from components.image import VERSION
from pipelines.cluster.checks import check_cluster, on_cluster
from pipelines.dag import TaskGraph, training_graph
from pipelines.images.code_version import UNCOMMITTED, code_commit, code_version
from pipelines.images.record import ImageRecord, read_images
from pipelines.options import check_new_file, print_line

TAGS = "tags"
"""Value of --images for images by tag, which the cluster's nodes already have."""

HEAD = """\
# Compiled by cellsignal. A run gives source (s3:// address of the screen), fingerprint (a different one if its files have
# changed) and truth (s3:// address of the unlabelled wells' labels, or empty); leave the other parameters as they are. A
# prediction also gives model (address of a published one of the same folds and cell types) and experiments (a JSON list, empty
# for all).
"""


def run_compile(config: RunConfig, out: Path, images: str, console: Console) -> None:
    """Compiles a configuration into a file, which is written atomically; `images` is the file of their record, or TAGS.

    Raises:
        InputError: a bad path, a configuration that no cluster can run, or no record of images.
    """
    if out.suffix not in (".yaml", ".yml"):
        raise InputError(f"--out {out}: Kubeflow requires a file name that ends in .yaml")
    check_new_file("--out", out)
    config = on_cluster(config)
    graph = training_graph(config)
    remarks = check_cluster(config, graph)
    record = images_of(images)
    lineage = known_lineage(config, record)
    text = compiled(config, graph, record.references, lineage)
    write_atomically(out, text)
    for remark in (*remarks, *lineage["warnings"]):
        print_line(console, f"warning: {remark}", "yellow")
    size = len(text.encode()) / 1024
    print_line(console, f"{out}: {size:.0f} KiB, recipe {lineage[RECIPE][:12]}")


def images_of(option: str) -> ImageRecord:
    """The images to pin, by the value of --images; none for TAGS. Raises as read_images."""
    if option == TAGS:
        return ImageRecord(schema=2, version=VERSION, commit=code_commit(), references={})
    try:
        return read_images(Path(option))
    except InputError as error:
        raise InputError(f"--images {error}; or give --images {TAGS} for images of version {VERSION} by tag") from None


def known_lineage(
    config: RunConfig, record: ImageRecord, prediction: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The lineage of a run before it is submitted: recipe, code version, image digests, seeds and warnings.

    It contains no time, so the same configuration, code and images compile to the same bytes. normalize adds the run's key,
    the screen and the start time. `prediction` is what identifies a prediction besides its configuration.
    """
    references, version = record.references, code_version()
    found = []
    if UNCOMMITTED in version:
        found.append("compiled from a tree with uncommitted changes: no commit identifies the code")
    if not references:
        found.append(
            f"images are named by the tag {VERSION}, which may be moved: nothing is pinned, and KFP caches nothing"
        )
    elif f"commit {record.commit[:12]}" not in version:
        found.append(f"the images are built from commit {record.commit}, the pipeline from {version}")
    content: list[Any] = [result_config(config), code_digest("components", "pipelines"), references or VERSION]
    content += [dict(prediction)] if prediction else []
    return {
        RECIPE: digest_text(json.dumps(content)),
        "code_version": version,
        "image_digests": references,
        "warnings": found,
        **({} if prediction else {"seeds": {"run": config.seed}}),
    }


def compiled(config: RunConfig, graph: TaskGraph, references: Mapping[str, str], lineage: Mapping[str, Any]) -> str:
    """The pipeline as YAML: its specification, and its settings for Kubernetes.

    `references` are those of the images by target; empty for tags.
    """
    from kfp import compiler

    from pipelines.kfp_pipeline import cluster_pipeline

    text = json.dumps(lineage, sort_keys=True)
    pipeline = cluster_pipeline(config, graph, references, text)
    with tempfile.TemporaryDirectory(prefix="cellsignal-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        file = Path(folder) / "pipeline.yaml"
        compiler.Compiler().compile(pipeline, str(file))
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    # kfp's own header repeats every default, including configurations.
    return HEAD + "".join(dropwhile(lambda line: line.startswith("#"), lines))
