"""cellsignal compile: a configuration becomes a pipeline for a cluster. Imports kfp only to compile, never torch."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from components.core.config import RunConfig, result_config
from components.core.errors import InputError
from components.core.files import write_atomically
from components.core.storage.digests import code_digest, digest_text
from components.core.storage.run_records import RECIPE
from components.image import VERSION
from pipelines.checks import weights_remarks
from pipelines.cluster.checks import check_cluster, on_cluster
from pipelines.cluster.workflow_size import LIMIT, WorkflowSize, workflow_size
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
        InputError: a bad path, a configuration that no cluster can run, no record of images, or a pipeline too large for Argo.
    """
    if out.suffix not in (".yaml", ".yml"):
        raise InputError(f"--out {out}: Kubeflow requires a file name that ends in .yaml")
    check_new_file("--out", out)
    config = on_cluster(config)
    graph = training_graph(config)
    remarks = [*weights_remarks(config), *check_cluster(config, graph)]
    record = images_of(images)
    lineage = known_lineage(config, record)
    text, size = compiled(config, graph, record.references, lineage)
    write_atomically(out, text)
    for remark in (*remarks, *lineage["warnings"]):
        print_line(console, f"warning: {remark}", "yellow")
    print_line(console, f"{out}: {len(text.encode()) / 1000:.0f} kB, recipe {lineage[RECIPE][:12]}")
    print_line(
        console, f"{size.tasks} tasks, about {size.total // 1000} of {LIMIT // 1000} kB in Argo with some retries"
    )


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
    """The lineage of a run before it is submitted: recipe, code version, image digests, namespace, seeds and warnings.

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
        "namespace": config.cluster.namespace,
        **({} if prediction else {"seeds": {"run": config.seed}}),
    }


def compiled(
    config: RunConfig, graph: TaskGraph, references: Mapping[str, str], lineage: Mapping[str, Any]
) -> tuple[str, WorkflowSize]:
    """The pipeline as YAML, its specification and its settings for Kubernetes; and its size in Argo.

    `references` are those of the images by target; empty for tags. InputError if Argo would refuse it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        from google.protobuf.json_format import MessageToDict

        from pipelines.kfp_pipeline import FUNCTIONS, cluster_pipeline

        pipeline = cluster_pipeline(config, graph, references, json.dumps(lineage, sort_keys=True))
        spec, platform = MessageToDict(pipeline.pipeline_spec), MessageToDict(pipeline.platform_spec)
    modules = {function.__name__: function.__module__ for function in FUNCTIONS.values()}
    _shorten(spec, platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"], modules)
    # Without a limit of the width, in which a line of text costs its indentation.
    text = HEAD + yaml.dump_all([spec, platform], Dumper=yaml.CSafeDumper, width=2**20)
    size = workflow_size(text)
    size.check(config.cluster.group == "fold")
    return text, size


def _shorten(spec: dict[str, Any], kubernetes: dict[str, Any], modules: Mapping[str, str]) -> None:
    """Gives tasks that differ only in their inputs one component, and leaves the source of components to the image.

    KFP makes a component of each task, and Argo repeats them and their commands in all nodes. `modules` are by the names of the
    components' functions.
    """
    components, executors = spec["components"], spec["deploymentSpec"]["executors"]
    first: dict[str, str] = {}
    renamed: dict[str, str] = {}
    for name, component in sorted(components.items()):
        label = component.get("executorLabel")
        if label is None:  # a loop
            continue
        container = executors[label]["container"]
        module = modules[container["args"][-1]]  # the name of the function
        container["command"] = ["python", "-m", "components.kfp_task", "--component", module]
        content = {**component, "executorLabel": [executors[label], kubernetes[label]]}
        renamed[name] = first.setdefault(json.dumps(content, sort_keys=True), name)
        if renamed[name] != name:
            del components[name], executors[label], kubernetes[label]
    for component in (spec["root"], *components.values()):
        for task in component.get("dag", {}).get("tasks", {}).values():
            task["componentRef"]["name"] = renamed.get(task["componentRef"]["name"], task["componentRef"]["name"])
