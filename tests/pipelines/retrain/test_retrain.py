"""`cellsignal retrain` up to where training would begin: what it reports, and what it rejects in one line."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from components.core.config import RunConfig
from components.core.errors import InputError
from components.core.learning.step_settings import library_versions
from components.core.registry.champion import promote
from components.core.registry.published_models import fingerprints
from components.core.screen.screen_source import ScreenDirectory
from components.core.storage.object_store import ObjectStore
from pipelines.cli import app
from pipelines.retrain.fingerprint import Fingerprint, fingerprint_of
from pipelines.retrain.records import RetrainingOutcome, write_outcome
from tests.components.core.registry.finished_run import KEY, FinishedRun
from tests.pipelines.tiny_run import Cellsignal

CHAMPION = "models/champion.json"


class Lab:
    """A screen, a store whose champion was never trained, and the command, in this process; HUVEC-04 is held out."""

    def __init__(self, published: FinishedRun, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(published.folder / "screen", folder / "screen")
        self.store = ObjectStore(folder / "store")
        self.store.put_many((key, published.store.get(key)) for key in published.store.list("models/"))
        (fingerprint,) = fingerprints(self.store)
        promote(self.store, fingerprint, "the first")
        self.config = folder / "lab.yaml"
        run = json.loads(published.config.model_dump_json())
        run["store"] = {"bucket": f"file://{folder / 'store'}", "prefix": ""}
        self.config.write_text(yaml.safe_dump(run))

    def arguments(self, *more: str) -> list[str]:
        return ["retrain", "--config", str(self.config), "--screen", str(self.folder / "screen"), *more]

    def __call__(self, *more: str) -> Result:
        """Retrains in this process; bad input is raised."""
        done = CliRunner().invoke(app, self.arguments(*more), env={"COLUMNS": "200"})
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done

    def everything(self) -> dict[str, bytes]:
        return {key: self.store.get(key) for key in self.store.list("")}


Spoil = Callable[[Lab], object]


@pytest.fixture
def lab(published: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return Lab(published, tmp_path)


MARGIN = ("--set", "promotion.min_plates=2")


def test_a_dry_run_reports_the_plan_and_writes_nothing(lab: Lab) -> None:
    before, summary = lab.everything(), lab.folder / "summary.md"
    done = lab("--dry-run", "--summary", str(summary), *MARGIN)
    champion = json.loads(lab.store.get(CHAMPION))["now"]["fingerprint"]
    compared = f"would compare it with champion {champion[:12]} on HUVEC-04"
    lines = ["would train a challenger on this machine", compared, "nothing was started (--dry-run)"]
    assert done.stdout.splitlines()[1:] == lines
    assert "nothing was retrained before under this name" in done.stdout
    text = summary.read_text()
    assert text.startswith("### Retraining, dry run")
    assert compared in text.replace("\\", "")
    shown = lab("--dry-run", "--json", *MARGIN)
    plan = json.loads(shown.stdout)
    assert (plan["action"], plan["champion"], plan["compared_on"]) == ("train", champion, ["HUVEC-04"])
    assert plan["changes"] is None
    assert "would train a challenger" in shown.stderr
    assert lab.everything() == before
    assert not (lab.folder / "runs").exists()


def test_a_dry_run_creates_no_store(lab: Lab) -> None:
    nowhere = lab.folder / "nowhere"
    for more in (("--set", f"store.bucket=file://{nowhere}"), ("--store", str(nowhere))):
        done = lab("--dry-run", *more)
        assert "there is no champion yet, so it would be promoted as the first model" in done.stdout
        assert not nowhere.exists()


def manifest(lab: Lab) -> str:
    (key,) = (key for key in lab.store.list("models/") if key.endswith("/manifest.json"))
    return key


def damage(lab: Lab) -> None:
    lab.store.put(CHAMPION, b'{"schema_version": 1, "now": ')


def without_network(lab: Lab) -> None:
    lab.store.delete(next(key for key in lab.store.list("models/") if key.endswith(".safetensors")))


def integers(lab: Lab) -> None:
    for table in (lab.folder / "screen").glob("*.csv"):
        table.write_text(table.read_text().replace("sirna_", ""))


def single_plate(lab: Lab) -> None:
    for name in ("train.csv", "train_controls.csv"):
        table = lab.folder / "screen" / name
        rows = table.read_text().splitlines(keepends=True)
        more = [row.replace("RPE-02", "RPE-03") for row in rows if row.startswith("RPE-02_1_")]
        table.write_text("".join(rows + more))
    images = lab.folder / "screen" / "train"
    shutil.copytree(images / "RPE-02" / "Plate1", images / "RPE-03" / "Plate1")


BAD: list[tuple[Spoil | None, Any, str]] = [
    (damage, [], "champion.json: damaged, not a champion's record"),
    (lambda lab: lab.store.delete(manifest(lab)), [], "champion.json names a champion that cannot be read ("),
    (without_network, MARGIN, "is missing, so that model"),
    (None, ["--screen", "nowhere"], "--screen nowhere: no such folder"),
    (None, ["--set", "screen.image_size=32", *MARGIN], "screen.image_size is 32, but champion"),
    (None, ["--set", "screen.holdout_experiments=[]"], "screen.holdout_experiments is empty"),
    (None, [], "(HUVEC-04): 2 held-out plates: fewer than 5 (promotion.min_plates) show nothing; hold out more"),
    (None, ["--set", "screen.holdout_experiments=[HUVEC-02]"], "HUVEC-02 is left out: the champion"),
    (integers, MARGIN, "knows none of their labels (it knows, for example, sirna_2)"),
    (
        single_plate,
        [*MARGIN, "--set", "screen.holdout_experiments=[HUVEC-04,RPE-03]"],
        "RPE with a single held-out plate",
    ),
    (None, ["--endpoint", "http://127.0.0.1:9", "--runner", "docker"], "--runner applies to this machine"),
    (None, ["--json"], "--json goes with --dry-run"),
    (None, ["--resubmit", "2"], "--resubmit applies to a cluster"),
    (None, ["--summary", "."], "--summary .: is a folder"),
    (None, ["--summary", "nowhere/summary.md"], "--summary nowhere/summary.md: there is no folder nowhere"),
    (None, ["--truth", "nowhere.csv", *MARGIN], "--truth nowhere.csv: cannot be read"),
]


@pytest.mark.parametrize(("spoil", "more", "message"), BAD)
def test_rejects_bad_input_in_one_line_and_leaves_the_store(
    lab: Lab, spoil: Spoil | None, more: list[str], message: str
) -> None:
    if spoil is not None:
        spoil(lab)
    before = lab.everything()
    with pytest.raises(InputError, match=re.escape(message)) as raised:
        lab(*more)
    assert "\n" not in str(raised.value)
    kept = {key: data for key, data in lab.everything().items() if not key.startswith("retrainings/")}
    assert kept == before
    assert not any(path.is_file() for path in (lab.folder / "runs").rglob("report.html"))


def outcome(fingerprint: Fingerprint) -> RetrainingOutcome:
    return RetrainingOutcome.model_validate({
        "name": "tiny", "run": KEY, "model": "a" * 64, "generation": 1, "promoted": False,
        "reason": "worse", "at": "2026-01-02T03:04:05Z", "observed": "2026-01-02T01:00:00Z",
        "fingerprint": fingerprint,
    })  # fmt: skip


def fingerprint(lab: Lab) -> Fingerprint:
    config = RunConfig.load(str(lab.config), [*MARGIN[1:]])
    return fingerprint_of(ScreenDirectory(lab.folder / "screen"), config, {"libraries": library_versions()}, lab.store)


def test_if_nothing_changed_nothing_starts_and_a_changed_table_is_named(lab: Lab) -> None:
    write_outcome(lab.store, outcome(fingerprint(lab)))
    table = lab.folder / "screen" / "train.csv"
    done = lab(*MARGIN)
    assert done.exit_code == 0
    assert done.stdout.startswith("nothing has changed since 2026-01-02 03:04 UTC")
    assert f"run {KEY}, whose model aaaaaaaaaaaa was not promoted (worse)" in done.stdout
    table.write_bytes(table.read_bytes() + b"\n")
    assert "changed since the last retraining: tables: train.csv" in lab("--dry-run", *MARGIN).stdout


HOLDING = """
import sys, time
from pathlib import Path
from components.core.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_retraining_waits_and_the_lock_of_a_killed_one_is_free(lab: Lab, cellsignal: Cellsignal) -> None:
    present = fingerprint(lab)
    lock = lab.folder / "runs" / "retrain" / present.digest[:12] / "lock"
    lock.parent.mkdir(parents=True)
    holder = subprocess.Popen([sys.executable, "-c", HOLDING, str(lock)], stdout=subprocess.PIPE, text=True)
    second = None
    try:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        second = cellsignal.start(*lab.arguments(*MARGIN))
        assert second.stdout
        assert any("another process retrains the same; waiting for its outcome" in line for line in second.stdout)
        write_outcome(lab.store, outcome(present))
        holder.kill()
        shown, errors = second.communicate(timeout=60)
    finally:
        for process in (holder, second):
            if process is not None:
                process.kill()
                process.wait(60)
    assert second.returncode == 4, errors
    assert f"model aaaaaaaaaaaa of run {KEY} was not promoted: worse" in shown
