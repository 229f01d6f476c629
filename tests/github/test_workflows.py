"""Every workflow fits GitHub's schema, pins its actions, has least rights, and puts no outside value into a script."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.github.workflows import FILES, FOLDER, ROOT, SHELL, Job, job, jobs, load, scripts

JOBS = {str(each): each for each in jobs()}
SCRIPTS = dict(scripts())

every_job = pytest.mark.parametrize("each", JOBS.values(), ids=JOBS.keys())
every_file = pytest.mark.parametrize("file", FILES, ids=[file.name for file in FILES])


def steps_of(file: Path) -> list[dict[str, Any]]:
    return [step for each in jobs() if each.workflow == file.name for step in each.content["steps"]]


def of_schema(content: object) -> list[str]:
    """Errors of a workflow by the schema that check-jsonschema ships."""
    schema = json.loads(
        (files("check_jsonschema") / "builtin_schemas" / "vendor" / "github-workflows.json").read_text()
    )
    return [error.message for error in jsonschema.Draft7Validator(schema).iter_errors(content)]


@every_file
def test_workflows_fit_githubs_schema(file: Path):
    assert of_schema(load(file)) == []
    broken = load(file)
    broken["jobs"]["extra"] = {"runs-on": "ubuntu-24.04", "steps": [{"script": "true"}]}
    assert of_schema(broken)


def test_zizmor_finds_nothing():
    # Offline, so audits that query GitHub (advisories, whether a digest belongs to the repository) do not run.
    program = Path(sys.executable).with_name("zizmor")
    command = [program, "--offline", "--no-progress", "--quiet", "--strict-collection", "--format", "json", "."]
    done = subprocess.run(command, cwd=FOLDER.parent, capture_output=True, text=True)
    assert (done.returncode, json.loads(done.stdout)) == (0, []), done.stdout + done.stderr


@every_job
def test_write_permissions_are_used_by_a_step(each: Job):
    needed = {
        "packages": each.used("docker/login-action"),
        "security-events": each.used("github/codeql-action/upload-sarif"),
        "attestations": each.used("actions/attest-build-provenance"),
        "id-token": each.used("actions/attest-build-provenance") or each.used("aws-actions/configure-aws-credentials"),
    }
    permissions = each.content.get("permissions", {"contents": "read"})
    written = {name for name, right in permissions.items() if right == "write"}
    assert written == {name for name, is_needed in needed.items() if is_needed}
    assert set(permissions.values()) <= {"read", "write"}


@every_job
def test_jobs_have_a_timeout_and_keep_no_token(each: Job):
    assert isinstance(each.content["timeout-minutes"], int)
    assert not re.search(r"secrets\.|github\.token", json.dumps(each.content.get("env", {}))), "steps alone get them"
    for step in each.content["steps"]:
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


@every_job
def test_jobs_of_one_kind_are_serialised(each: Job):
    concurrency = each.content.get("concurrency") or load(FOLDER / each.workflow)["concurrency"]
    assert "${{" in concurrency["group"]
    # Only runs of a pull request may be cancelled: an image may be half pushed, a model half promoted.
    expected = "${{ github.event_name == 'pull_request' }}" if each.workflow == "ci.yml" else False
    assert concurrency["cancel-in-progress"] == expected


@every_file
def test_workflows_have_read_access_only_and_scripts_stop_at_the_first_failure(file: Path):
    assert load(file)["permissions"] == {"contents": "read"}
    assert load(file)["defaults"]["run"]["shell"] == " ".join([*SHELL, "{0}"])
    assert not any("shell" in step for step in steps_of(file))


@pytest.mark.parametrize("where", SCRIPTS)
def test_scripts_get_values_through_their_environment_only(where: str):
    # An expression is put into the text of the script before bash reads it, so that a branch's name could be a command.
    assert "${{" not in SCRIPTS[where]
    assert subprocess.run([*SHELL, "-n"], input=SCRIPTS[where], text=True, capture_output=True).stderr == ""


@pytest.mark.parametrize("where", SCRIPTS)
def test_no_secret_is_an_argument(where: str):
    # Builtins of bash have arguments that no other process sees.
    for line in SCRIPTS[where].replace("\\\n", " ").splitlines():
        if re.search(r"\$\{?\w*(TOKEN|SECRET|PASSWORD|COOKIE)\b", line):
            assert line.split()[0] in ("printf", "unset", "export"), line


def test_ci_run_and_the_workflow_run_the_same_commands():
    here = "\n".join(script for where, script in SCRIPTS.items() if where.startswith("ci.yml"))
    for line in (ROOT / ".ci" / "run").read_text().splitlines():
        # GitHub's jobs, each on its own machine, run the whole demo on S3 instead of comparing a fold of it.
        if re.match(r"make |\.ci/|\.venv/", line) and "check_stores" not in line:
            assert line.partition(" OPTIONS=")[0] in here, line


def test_images_are_rebuilt_when_a_file_in_them_changes():
    paths = load(FOLDER / "images.yml")["on"]["push"]["paths"]
    let_in = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    named = {path.partition("/")[0] for path in paths}
    assert {path.partition("/")[0] for path in let_in} - named == {"README.md", "LICENSE"}


def test_nothing_is_pushed_before_it_is_scanned():
    steps = job("images.yml", "images").content["steps"]
    order = [step.get("uses", "").partition("@")[0] or step.get("name") for step in steps]
    scans = [number for number, name in enumerate(order) if name == "anchore/scan-action"]
    images = [steps[number]["with"]["image"].partition(":")[0] for number in scans]
    assert images == ["cellsignal-cpu", "cellsignal-gpu"]
    for number in scans:
        assert {**steps[number]["with"], "image": "", "output-file": ""} == {
            "image": "", "output-file": "", "output-format": "sarif",
            "severity-cutoff": "critical", "only-fixed": True, "fail-build": True,
        }  # fmt: skip
    assert max(scans) < order.index("docker/login-action") < order.index("Push")
    # A step with a status function of its own would run after a failed scan.
    for name in ("docker/login-action", "Push"):
        assert not re.search(r"always|cancelled|failure", str(steps[order.index(name)].get("if")))
