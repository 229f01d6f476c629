"""Pipeline, version, experiment and run at an endpoint, each made only where it is not there. Speaks to the API, prints nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.core.errors import ContactError, InputError
from pipelines.cluster.endpoint import Endpoint, EndpointError
from pipelines.cluster.identity import Identity

ENDED = frozenset({"SUCCEEDED", "SKIPPED", "FAILED", "CANCELED"})
LEAVING = frozenset({"CANCELING"})
"""Not ended, but nothing to follow: somebody is ending it."""
CONFLICT = 409


@dataclass(frozen=True)
class Place:
    """Where runs are started.

    Attributes:
        pipeline: id of the pipeline.
        version: id of its version.
        experiment: id of the experiment.
    """

    pipeline: str
    version: str
    experiment: str


def prepare(endpoint: Endpoint, identity: Identity, compiled: Path, experiment: str) -> Place:
    """Uploads what is not there yet.

    Args:
        endpoint: where.
        identity: names of pipeline and version.
        compiled: the pipeline file.
        experiment: its name.

    Raises:
        EndpointError: the endpoint refuses or fails.
    """
    pipeline = _pipeline(endpoint, identity, compiled)
    version = _made_once(
        find=lambda: _named(
            endpoint,
            endpoint.pipelines.pipeline_service_list_pipeline_versions,
            "pipeline_versions",
            identity.version,
            pipeline_id=pipeline,
        ),
        make=lambda: endpoint.call(
            endpoint.uploads.upload_pipeline_version,
            str(compiled),
            name=identity.version,
            display_name=identity.version,
            pipelineid=pipeline,
        ),
    )
    return Place(pipeline, version.pipeline_version_id, find_experiment(endpoint, experiment))


def _pipeline(endpoint: Endpoint, identity: Identity, compiled: Path) -> str:
    found = _made_once(
        find=lambda: _named(
            endpoint,
            endpoint.pipelines.pipeline_service_list_pipelines,
            "pipelines",
            identity.pipeline,
            **endpoint.of_namespace(),
        ),
        make=lambda: endpoint.call(
            endpoint.uploads.upload_pipeline,
            str(compiled),
            name=identity.pipeline,
            display_name=identity.pipeline,
            **endpoint.of_namespace(),
        ),
    )
    return str(found.pipeline_id)


def find_experiment(endpoint: Endpoint, name: str) -> str:
    """The id of an experiment, which is made where there is none.

    Raises:
        InputError: it is archived, so that no run can be started in it.
        EndpointError: the endpoint refuses or fails.
    """
    models = endpoint.models
    found = _made_once(
        find=lambda: _named(
            endpoint,
            endpoint.experiments.experiment_service_list_experiments,
            "experiments",
            name,
            **endpoint.of_namespace(),
        ),
        make=lambda: endpoint.call(
            endpoint.experiments.experiment_service_create_experiment,
            models.V2beta1Experiment(display_name=name, **endpoint.of_namespace()),
        ),
    )
    if str(found.storage_state) == "ARCHIVED":
        raise InputError(
            f"cluster.experiment: {name} is archived at {endpoint.url}; unarchive it in the UI (Experiments, Archived), or name "
            "another"
        )
    return str(found.experiment_id)


def run_in_progress(endpoint: Endpoint, experiment: str, key: str) -> Any | None:
    """The first run of the same content that has not ended; None where there is none."""
    runs = endpoint.every(
        endpoint.runs.run_service_list_runs,
        "runs",
        experiment_id=experiment,
        filter=_filter("IS_SUBSTRING", key),
    )
    # A substring is all that the server can look for.
    same = [run for run in runs if (run.display_name or "").split(" ")[0] == key]
    # KFP knows seconds only: the id decides between two of the same second, the same way for everybody who looks.
    going = [run for run in same if str(run.state) not in ENDED | LEAVING]
    return min(going, key=lambda run: (str(run.created_at), run.run_id), default=None)


def keep_first(endpoint: Endpoint, experiment: str, key: str, mine: Any) -> Any:
    """The run that stays where somebody else started the same content at the same moment; ours is ended if it is not that one.

    Nobody can ask KFP for a run unless there is one, so that two who looked before either had started both start. Both must
    look again a second or more after, when each sees the other's.

    Raises:
        EndpointError: ours cannot be ended.
    """
    try:
        first = run_in_progress(endpoint, experiment, key)
    except EndpointError:
        return mine  # it has started all the same
    if first is None or first.run_id == mine.run_id:
        return mine
    endpoint.call(endpoint.runs.run_service_terminate_run, mine.run_id)
    return first


def start(
    endpoint: Endpoint, place: Place, identity: Identity, parameters: dict[str, Any], service_account: str, root: str
) -> Any:
    """Starts a run.

    Args:
        endpoint: where.
        place: pipeline and experiment.
        identity: names of the run.
        parameters: of the pipeline.
        service_account: of its pods.
        root: address that Kubeflow keeps its artifacts below; a namespace's default may be another bucket, with another Secret.

    Raises:
        EndpointError: the endpoint refuses.
        ContactError: nobody knows whether it has started.
    """
    models = endpoint.models
    body = models.V2beta1Run(
        display_name=identity.run,
        experiment_id=place.experiment,
        pipeline_version_reference=models.V2beta1PipelineVersionReference(
            pipeline_id=place.pipeline, pipeline_version_id=place.version
        ),
        runtime_config=models.V2beta1RuntimeConfig(parameters=parameters, pipeline_root=root),
        service_account=service_account,
    )
    try:
        return endpoint.call(endpoint.runs.run_service_create_run, body)
    except EndpointError as error:
        if not error.passing:
            raise
        # The run may have started though its answer was lost: look before a second one is asked for.
        try:
            found = run_in_progress(endpoint, place.experiment, identity.key)
        except EndpointError:
            raise ContactError(
                f"{error}; whether run {identity.run} has started is not known: the same command follows it if it has"
            ) from None
        if found is None:
            raise
        return found


def _made_once(find: Any, make: Any) -> Any:
    """What is found, else what is made; somebody else who makes it at the same time makes it for us too."""
    found = find()
    if found is not None:
        return found
    try:
        return make()
    except EndpointError as error:
        found = find() if error.status == CONFLICT or error.passing else None
        if found is None:
            raise
        return found


def _named(endpoint: Endpoint, function: Any, items: str, name: str, **where: str) -> Any | None:
    """The item of this name in a list of the API; None where there is none."""
    found = endpoint.every(function, items, filter=_filter("EQUALS", name), **where)
    return next((item for item in found if item.display_name == name), None)


def _filter(operation: str, name: str) -> str:
    return json.dumps({"predicates": [{"operation": operation, "key": "display_name", "string_value": name}]})
