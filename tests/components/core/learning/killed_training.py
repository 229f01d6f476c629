"""python -m tests.components.core.learning.killed_training: kills a small training at random moments, again and again.

Each time another training of the same inputs is killed by SIGKILL, or its disk is full, at a random moment between start
and end, and started again until it ends; its weights must be those of an undisturbed one, bit for bit. Prints JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from components.core.learning.step_settings import MeanTeacherSettings, PretrainSettings
from components.core.storage.object_store import ObjectStore
from tests.components.core.learning.tiny_networks import MEAN_TEACHER, PRETRAIN
from tests.components.pretrain.training_run import TrainingRun
from tests.seaweedfs import BUCKET, s3_server
from tests.tiny_screen import TinyScreen

FULL_BYTES = 4_000
"""Largest file where the disk is full: some outputs fit, weights and checkpoints do not."""


def settings(seconds: float) -> tuple[PretrainSettings, MeanTeacherSettings]:
    """Longer than other tests' training, with a checkpoint every so many seconds."""
    compute = {"compute": PRETRAIN.compute.model_copy(update={"checkpoint_seconds": seconds})}
    pretrain = PRETRAIN.pretrain.model_copy(update={"epochs": 6})
    teaching = MEAN_TEACHER.mean_teacher.model_copy(update={"cycle_epochs": 2})
    return (
        PRETRAIN.model_copy(update={**compute, "pretrain": pretrain}),
        MEAN_TEACHER.model_copy(update={**compute, "mean_teacher": teaching}),
    )


def forked(work: Callable[[], None], seconds: float | None = None, full: bool = False) -> int:
    """Runs it in a child, killed after some seconds; its status, 0 where it came to its end.

    The child is forked, so that it need not load torch; the parent uses neither its threads nor the object store.
    """
    child = os.fork()
    if not child:
        try:
            if full:
                resource.setrlimit(resource.RLIMIT_FSIZE, (FULL_BYTES, FULL_BYTES))
            sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - it ends with the process
            work()
        except BaseException:
            os._exit(3)
        os._exit(0)
    deadline = time.monotonic() + (seconds if seconds is not None else 600)
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def digests(run: TrainingRun) -> dict[str, str]:
    """Of all weights and logits that a run made; what kill -9 left under a temporary, hidden name is none of them."""
    found = [*run.out.rglob("*.safetensors"), *run.out.rglob("logits.npz")]
    files = [file for file in found if not any(part.startswith(".") for part in file.relative_to(run.out).parts)]
    return {str(file.relative_to(run.out)): hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files)}


def main(kills: int, seed: int) -> None:
    rng = random.Random(seed)
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="cellsignal-"))
    TinyScreen(folder / "screen")
    with s3_server(folder / "store") as server:
        os.environ.update(server.environment())

        def make(name: str, seconds: float) -> tuple[TrainingRun, Callable[[], None]]:
            run = TrainingRun(folder / name, name)
            pretrain, teaching = settings(seconds)
            run.pretrain_json, run.mean_teacher_json = pretrain.model_dump_json(), teaching.model_dump_json()
            assert forked(lambda: run.normalize(folder / "screen") and None) == 0
            return run, run.train

        whole, work = make("whole", 1e9)
        begun = time.monotonic()
        assert forked(work) == 0
        length = time.monotonic() - begun
        expected = digests(whole)
        identical = killed = filled = 0
        different: list[str] = []
        for k in range(kills):
            run, work = make(f"killed-{k}", 0.1)
            full = k % 4 == 3
            status = forked(work, None if full else rng.uniform(0.0, length), full)
            killed += os.WIFSIGNALED(status)
            filled += full and os.WEXITSTATUS(status) != 0
            assert forked(work) == 0
            found = digests(run)
            identical += found == expected
            different += [f"try {k}: {name}" for name in expected if found.get(name) != expected[name]]
            assert forked(lambda prefix=run.prefix: _expect_nothing(prefix)) == 0, "checkpoints are left behind"
            shutil.rmtree(run.out)
    shutil.rmtree(folder)
    told = {"tries": kills, "killed": killed, "full": filled, "identical": identical, "different": different}
    print(json.dumps(told))  # noqa: T201


def _expect_nothing(prefix: str) -> None:
    assert ObjectStore(BUCKET, prefix).list("checkpoints/") == []


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
