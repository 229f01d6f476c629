"""A small Kubeflow Pipelines server on loopback: the part of the v2beta1 API that submit speaks, with its paths, JSON and errors.

As the real one: names in snake case, filters as JSON in the query, uploads as multipart forms with the names in the query, 409
for a name that is taken, errors as {"error", "code", "message"}, a terminated run CANCELING and then FAILED, namespaces required
by a multi-user deployment and refused by a single-user one.
"""

from __future__ import annotations

import json
import re
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from tests.pipelines.cluster.simulated_cluster import SimulatedCluster

API = "/apis/v2beta1"
LOGIN_PAGE = "<!DOCTYPE html><html><body>Log in to Your Account</body></html>"


class RefusedError(Exception):
    """An answer that is not 200."""

    def __init__(self, status: int, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


@dataclass
class Fault:
    """What happens to the next requests of a kind instead of their answers.

    `status` 0 closes the connection without a word; `after` does the work first, so that only the answer is lost.
    """

    status: int
    times: int = 1
    path: str = ""
    method: str = ""
    body: str = ""
    kind: str = "application/json"
    after: bool = False


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


@dataclass
class KfpServer:
    """State and behaviour of the server.

    `script` lists the states of a new run, one for each request for it, the last for good; `on_end` is called when it reaches
    the last one, and `on_look` for each request. `token` and `cookie` are required if they are set. With a `cluster`, runs are
    executed there instead, and its Kubernetes API has the same address.
    """

    multi_user: bool = False
    namespaces: tuple[str, ...] = ("cellsignal",)
    script: list[list[str]] = field(default_factory=lambda: [["SUCCEEDED"]])
    on_end: Callable[[dict[str, Any]], None] = lambda run: None
    on_look: Callable[[dict[str, Any]], object] = lambda run: None
    cluster: SimulatedCluster | None = None
    token: str | None = None
    cookie: str | None = None
    faults: list[Fault] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    pipelines: list[dict[str, Any]] = field(default_factory=list)
    versions: list[dict[str, Any]] = field(default_factory=list)
    experiments: list[dict[str, Any]] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    uploaded: dict[str, bytes] = field(default_factory=dict)
    url: str = ""
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _states: dict[str, list[str]] = field(default_factory=dict)

    def asked(self, method: str, path: str) -> list[Request]:
        """Requests of a method whose path matches."""
        return [each for each in self.requests if each.method == method and re.search(path, each.path)]

    def answer(self, request: Request) -> Any:
        """The JSON of an answer."""
        if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
            raise RefusedError(401, "Request header error: there is no user identity header.", 16)
        with self._lock:
            query = request.query
            match request.method, *request.path.removeprefix(f"{API}/").split("/"):
                case "GET", "healthz":
                    return {"commit_sha": "0123abc", "tag_name": "2.17.0", "multi_user": self.multi_user}
                case "GET", "pipelines" | "experiments" as name:
                    self._authorise(query, f"List {name}")
                    return _page(name, self.pipelines if name == "pipelines" else self.experiments, query)
                case "GET", "pipelines", pipeline, "versions":
                    mine = [version for version in self.versions if version["pipeline_id"] == pipeline]
                    return _page("pipeline_versions", mine, query)
                case "GET", "runs":
                    mine = [run for run in self.runs if run["experiment_id"] == query.get("experiment_id")]
                    for run in mine if self.cluster else ():
                        run["state"] = self.cluster.state(run["run_id"])
                    return _page(
                        "runs",
                        sorted(
                            mine, key=lambda run: run["created_at"], reverse=query.get("sort_by") == "created_at desc"
                        ),
                        query,
                    )
                case "GET", "runs", run_id:
                    return self._look(self._run(run_id))
                case "POST", "pipelines", "upload":
                    self._authorise(query, "upload")
                    made = {"pipeline_id": str(uuid.uuid4()), "display_name": query["name"], "created_at": _now()}
                    _add(self.pipelines, made)
                    # As the real one: a new pipeline has a first version of the same name.
                    self._add_version(made["pipeline_id"], query["name"], request.body)
                    return made
                case "POST", "pipelines", "upload_version":
                    return self._add_version(query["pipelineid"], query["name"], request.body)
                case "POST", "experiments":
                    body = json.loads(request.body)
                    self._authorise(body, "CreateExperiment")
                    made = {"experiment_id": str(uuid.uuid4()), "storage_state": "AVAILABLE", **body}
                    return _add(self.experiments, {**made, "created_at": _now()})
                case "POST", "runs":
                    body = json.loads(request.body)
                    version = body["pipeline_version_reference"]["pipeline_version_id"]
                    if not any(each["pipeline_version_id"] == version for each in self.versions):
                        raise RefusedError(404, f"PipelineVersion {version} not found", 5)
                    script = self.script.pop(0) if len(self.script) > 1 else self.script[0]
                    return self._new_run(body, list(script))
                case "POST", "runs", action if action.endswith(":terminate"):
                    run = self._run(action.partition(":")[0])
                    run["state"] = "CANCELING"
                    if self.cluster:
                        self.cluster.terminate(run["run_id"])
                    self._states[run["run_id"]] = ["CANCELING", "FAILED"]
                    return {}
                case "GET", "", "api", "v1", "namespaces", _, "pods", *name if self.cluster:
                    return self.cluster.pods(query.get("labelSelector", ""), *name)
            raise RefusedError(404, "Not Found", 5)

    def _authorise(self, source: Mapping[str, str], what: str) -> None:
        namespace = source.get("namespace", "")
        if bool(namespace) != self.multi_user:
            problem = "requires a namespace" if self.multi_user else "cannot filter by namespace in single-user mode"
            raise RefusedError(400, f"Invalid input error: {what} {problem}.", 3)
        if self.multi_user and namespace not in self.namespaces:
            raise RefusedError(403, f"User 'ada@example.org' is not authorized (Namespace:{namespace}, Verb:list)", 7)

    def _add_version(self, pipeline: str, name: str, form: bytes) -> dict[str, Any]:
        ids = {"pipeline_id": pipeline, "pipeline_version_id": str(uuid.uuid4())}
        made = _add(self.versions, {**ids, "display_name": name, "created_at": _now()}, "pipeline_id")
        self.uploaded[name] = form.partition(b"\r\n\r\n")[2].rpartition(b"\r\n--")[0]
        return made

    def _new_run(self, body: dict[str, Any], states: list[str]) -> dict[str, Any]:
        # Seconds apart, as KFP counts them, and none of them later than what the tests leave in the store.
        at = datetime.now(UTC) + timedelta(seconds=len(self.runs), hours=-1)
        if self.cluster:
            at = datetime.now(UTC)
        made = {**body, "run_id": str(uuid.uuid4()), "created_at": at.isoformat(), "state": "PENDING"}
        if self.cluster:
            self.cluster.start(made)
        self._states[made["run_id"]] = states
        self.runs.append(made)
        return made

    def _run(self, run_id: str) -> dict[str, Any]:
        for run in self.runs:
            if run["run_id"] == run_id:
                return run
        raise RefusedError(404, f"Run {run_id} not found", 5)

    def _look(self, run: dict[str, Any]) -> dict[str, Any]:
        states = self._states[run["run_id"]]
        if self.cluster:
            states = [self.cluster.state(run["run_id"])]
            if states[0] not in ("SUCCEEDED", "FAILED", "CANCELED"):
                states *= 2
            run["run_details"] = {"task_details": self.cluster.task_details(run["run_id"])}
        run["state"] = states[0]
        if len(states) > 1:
            states.pop(0)
        elif not run.get("_ended"):
            run["_ended"] = True
            self.on_end(run)
        shown = {key: value for key, value in run.items() if not key.startswith("_")}
        self.on_look(run)
        return shown


def _add(items: list[dict[str, Any]], made: dict[str, Any], *scope: str) -> dict[str, Any]:
    """Adds an item, unless its name is taken."""
    if any(all(each[key] == made[key] for key in ("display_name", *scope)) for each in items):
        raise RefusedError(409, f"Already exist error: {made['display_name']}", 6)
    items.append(made)
    return made


def _page(name: str, items: list[dict[str, Any]], query: Mapping[str, str]) -> dict[str, Any]:
    for predicate in json.loads(query.get("filter") or "{}").get("predicates", []):
        wanted = predicate.get("string_value") or predicate["stringValue"]  # both are accepted
        part = predicate["operation"] == "IS_SUBSTRING"
        items = [item for item in items if (value := item[predicate["key"]]) == wanted or (part and wanted in value)]
    return {name: items[: int(query.get("page_size") or 10)], "total_size": len(items)}


def _now() -> str:
    return datetime.now(UTC).isoformat()


@contextmanager
def serve(server: KfpServer) -> Iterator[KfpServer]:
    """Runs the server until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else each answer waits 40 ms for the client's acknowledgement of its headers

        def _handle(self) -> None:
            method = self.command
            parts = urlsplit(self.path)
            query = {key: values[0] for key, values in parse_qs(parts.query).items()}
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {key.lower(): value for key, value in self.headers.items()}
            request = Request(method, parts.path, query, headers, body)
            server.requests.append(request)
            fault = next(
                (f for f in server.faults if f.times and f.path in parts.path and f.method in ("", method)), None
            )
            if fault is not None:
                fault.times -= 1
                if fault.after:
                    server.answer(request)
                if not fault.status:
                    self.close_connection = True
                    return
                self._send(fault.status, fault.body.encode(), fault.kind)
                return
            if server.cookie and headers.get("cookie") != server.cookie:
                self._send(200, LOGIN_PAGE.encode(), "text/html; charset=utf-8")
                return
            try:
                self._send(200, json.dumps(server.answer(request)).encode(), "application/json")
            except RefusedError as refused:
                error = {"error": refused.message, "code": refused.code, "message": refused.message, "details": []}
                self._send(refused.status, json.dumps(error).encode(), "application/json")

        do_GET = do_POST = _handle

        def _send(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A client that has gone is no error of the server."""

    listening = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{listening.server_port}"
    try:
        yield server
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join()
