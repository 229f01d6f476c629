"""The folder of a run on this machine: one process at a time, one configuration, and what a refused run leaves (nothing).

OUT/<results>           see pipelines.run.results
OUT/run/run.json        what the folder's run is: configuration, screen, truth
OUT/run/job.json        what the worker process runs
OUT/run/config.yaml     the configuration
OUT/run/events.jsonl    progress of the tasks of the last start
OUT/run/log.txt         what tasks print, of all starts
OUT/run/kfp             artifacts of the last start
OUT/run/tmp             temporary files, removed at the end
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.core.config import NO_EFFECT_ON_RESULTS, RunConfig, first_difference
from components.core.errors import InputError
from components.core.files import locked, write_atomically
from components.core.progress import finished_tasks
from components.core.storage.opening import whole_address

JOB = "job.json"


@dataclass(frozen=True)
class RunFolder:
    """An opened folder.

    Attributes:
        out: folder of the results.
        work: its working folder, OUT/run, absolute.
    """

    out: Path
    work: Path

    @property
    def events(self) -> Path:
        """Progress of the tasks."""
        return self.work / "events.jsonl"

    @property
    def log(self) -> Path:
        """What tasks print."""
        return self.work / "log.txt"

    @property
    def tmp(self) -> Path:
        """Temporary files of tasks: beside the artifacts, since a checkpoint should not lie in memory as /tmp may."""
        return self.work / "tmp"

    @property
    def simulated(self) -> Path:
        """The simulated screen, and truth.csv beside it."""
        return self.work / "simulated"

    def has_results(self) -> bool:
        """Whether a run in this folder got as far as a report."""
        return (self.out / "report.html").exists()

    def has_finished_tasks(self) -> bool:
        """Whether a task of the DAG finished here, or a report is there."""
        return self.has_results() or any(task["step"] != "simulate" for task in self._finished())

    def _finished(self) -> list[dict[str, Any]]:
        try:
            return finished_tasks(self.events)
        except (ValueError, KeyError, TypeError):  # written by nothing of ours: then nothing of ours is lost with it
            return []


@contextlib.contextmanager
def opened_folder(
    out: Path,
    config: RunConfig,
    screen: str | None,
    truth: Path | None,
    more: Mapping[str, Any] | None = None,
    keep_tasks: bool = True,
) -> Iterator[RunFolder]:
    """Locks the folder of a run for this process; bad input that is found before anything was computed leaves no folder.

    Args:
        out: folder of the results.
        config: the run's configuration.
        screen: its screen; None if it is simulated.
        truth: its labels.
        more: what else makes it another run.
        keep_tasks: whether bad input leaves the folder if a task finished; else only if there are results.

    Raises:
        InputError: the folder cannot be written, is in use, or holds something else.
    """
    described = {
        "config": json.loads(config.model_dump_json()),
        "screen": whole_address(screen) if screen else None,
        "truth": str(truth.resolve()) if truth else None,
        **(more or {}),
    }
    # kfp.local replaces this word in every argument of a task by the interpreter's path.
    for path in (str(out.resolve()), described["screen"] or "", described["truth"] or ""):
        if "python3" in path:
            raise InputError(f"{path}: kfp.local cannot take a path with 'python3' in it; use another folder name")
    folder = RunFolder(out, (out / "run").resolve())
    with contextlib.ExitStack() as held:
        try:
            if out.exists() and not folder.work.is_dir() and any(out.iterdir()):
                raise InputError(f"--out {out}: not empty, and not a run; use a new folder")
            folder.work.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(folder.work / "lock", wait=False))
            _describe(folder, described)
            write_atomically(folder.work / "config.yaml", config.dump())
            for path in (folder.events, folder.log):
                if path.exists() and not path.is_file():
                    raise InputError(f"{path}: is not a file; remove it, or use a new folder")
        except BlockingIOError:
            raise InputError(
                f"--out {out}: another run is working in this folder; wait for it or use another"
            ) from None
        except OSError as error:
            raise InputError(f"--out {out}: cannot be written ({error.strerror}); choose another folder") from None
        try:
            yield folder
        except InputError:
            if not (folder.has_finished_tasks() if keep_tasks else folder.has_results()):
                shutil.rmtree(folder.work)
                with contextlib.suppress(OSError):
                    out.rmdir()
            raise


def _describe(folder: RunFolder, described: dict[str, Any]) -> None:
    """Writes down what the folder's run is, or finds that it is another one."""
    path = folder.work / "run.json"
    if path.is_file():
        changed = first_difference(_result_part(_read(path, folder.out)), _result_part(described))
        if changed and folder.has_finished_tasks():
            raise InputError(
                f"--out {folder.out}: holds a run with another {changed}; use a new folder, or the same settings"
            )
        if changed:
            # Nothing was computed with the earlier settings, which were wrong, so there is nothing to protect.
            shutil.rmtree(folder.simulated, ignore_errors=True)
    write_atomically(path, json.dumps(described, indent=1))


def _read(path: Path, out: Path) -> dict[str, Any]:
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
        return {**earlier, "config": dict(earlier["config"])}
    except (ValueError, KeyError, TypeError):
        raise InputError(f"--out {out}: {path} is damaged, so that its run is not known; use a new folder") from None


def _result_part(described: Mapping[str, Any]) -> dict[str, Any]:
    """A description without the sections that may change before a run resumes."""
    kept = {name: section for name, section in described["config"].items() if name not in NO_EFFECT_ON_RESULTS}
    return {**described, "config": kept}
