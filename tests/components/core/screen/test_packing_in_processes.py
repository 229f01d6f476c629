"""Packing by worker processes does what packing by threads does, to the byte, also when a process is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from components.core.errors import InputError, StepError
from components.core.screen import packing
from components.core.screen.batches import Packing
from components.core.screen.layouts import read_screen
from components.core.screen.packing import PackResult, pack_plates
from components.core.screen.screen_source import ScreenDirectory
from components.core.storage.object_store import ObjectStore
from tests.bench.measure import children
from tests.tiny_screen import CONFIG, FORM, SIZE, TinyScreen, raw_png

ROOT = Path(__file__).parents[4]


@pytest.fixture
def tiny(tmp_path: Path) -> TinyScreen:
    return TinyScreen(tmp_path / "screen")


@pytest.fixture
def in_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even a screen of a few pixels, and even on one core."""
    monkeypatch.setattr(packing, "PROCESSES_FROM", 0)
    monkeypatch.setattr(packing, "cores", lambda: 2)


class GatedScreen(ScreenDirectory):
    """A screen whose images of RPE-01 are not read while the file `gate` exists."""

    def read_many(self, paths: Sequence[str]) -> list[bytes]:
        while self.root.with_name("gate").exists() and any("RPE-01" in path for path in paths):
            time.sleep(0.005)
        return super().read_many(paths)


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    (tmp_path / "gate").touch()
    return tmp_path / "gate"


def pack(root: Path, store: ObjectStore) -> list[PackResult]:
    plates = read_screen(root, CONFIG.screen).plates
    return list(pack_plates(Packing(GatedScreen(root), FORM, CONFIG.pack, store), plates))


def main(root: str, store: str) -> None:
    """Packs in processes; the program of the tests that kill it."""
    packing.PROCESSES_FROM, packing.cores = 0, lambda: 2
    pack(Path(root), ObjectStore(Path(store)))


def workers_of(parent: int) -> list[int]:
    """Process ids of the workers, which a server process forks."""
    return [worker for server in children(parent) for worker in children(server)]


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(done: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def test_processes_write_the_same_bytes_as_threads(
    tiny: TinyScreen, tmp_path: Path, in_processes: None, monkeypatch: pytest.MonkeyPatch
):
    """A bad image, noticed by the decoder alone, leaves nothing of its plate, and those before it complete."""
    stores = [ObjectStore(tmp_path / name) for name in ("processes", "threads")]
    image = tiny.image("HUVEC-02", 1, "C02", 2, 5)
    good = image.read_bytes()
    image.write_bytes(raw_png(SIZE, zlib.compress(b"\0" * SIZE)))
    with pytest.raises(
        InputError, match=r"C02_s2_w5\.png: channel 5 \(mitochondria\) of well C02, site 2: the image data"
    ):
        pack(tiny.root, stores[0])
    kept = {key.split("/")[1].rpartition("-")[0] for key in stores[0].list("plates/")}
    assert kept == {"HUVEC-01_Plate1", "HUVEC-01_Plate2"}
    assert sum(key.endswith("/plate.json") for key in stores[0].list("plates/")) == 2
    image.write_bytes(good)
    results = [pack(tiny.root, stores[0])]
    monkeypatch.setattr(packing, "PROCESSES_FROM", 1e99)
    results.append(pack(tiny.root, stores[1]))
    assert [each.packed for each in results[0]] == [each.packed for each in results[1]]
    contents = [{key: store.get(key) for key in store.list("plates/")} for store in stores]
    assert contents[0] == contents[1]
    assert len(stores[1].list("")) == sum(each.written for each in results[1])


def test_a_killed_worker_is_one_clear_error_and_the_next_run_finishes(
    tiny: TinyScreen, tmp_path: Path, in_processes: None, gate: Path
):
    store = ObjectStore(tmp_path / "store")

    def kill_one() -> None:
        wait_for(lambda: workers_of(os.getpid()), "workers")
        os.kill(workers_of(os.getpid())[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    with pytest.raises(
        StepError, match=r"^a worker process was killed, .* memory .*run again: finished plates are reused"
    ):
        pack(tiny.root, store)
    killer.join(timeout=60)
    wait_for(lambda: not workers_of(os.getpid()), "the end of the other workers")
    gate.unlink()
    assert len(pack(tiny.root, store)) == 8


def test_workers_end_with_their_killed_parent_and_a_rerun_finishes(tiny: TinyScreen, tmp_path: Path, gate: Path):
    store = ObjectStore(tmp_path / "store")
    program = f"from {__name__} import main; import sys; main(*sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tiny.root), str(store.root)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
    )
    wait_for(lambda: any(key.endswith("/plate.json") for key in store.list("plates/")), "a plate")
    workers = workers_of(process.pid)
    assert workers
    process.kill()
    process.wait(timeout=60)
    wait_for(lambda: not any(map(running, workers)), f"{workers} outlive their parent")
    gate.unlink()
    assert len(pack(tiny.root, store)) == 8
