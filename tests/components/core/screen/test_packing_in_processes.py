"""Packing by processes does what packing by threads does, to the byte, whatever goes wrong on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import pytest

from components.core.errors import InputError, StepError
from components.core.screen import packing
from components.core.screen.layouts import read_screen
from components.core.screen.packing import Packing, PackResult, pack_plates
from components.core.screen.screen_source import ScreenDirectory
from components.core.storage.folder_store import FolderStore
from components.normalize.requests import CountedWriter
from components.normalize.step import run
from tests.tiny_screen import CONFIG, SIZE, TinyScreen, raw_png


@pytest.fixture
def tiny(tmp_path: Path) -> TinyScreen:
    return TinyScreen(tmp_path / "screen")


@pytest.fixture
def in_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even a screen of a few pixels, and even where there is one core."""
    monkeypatch.setattr(packing, "PROCESSES_FROM", 0)
    monkeypatch.setattr(packing, "cores", lambda: 2)


def pack(tiny: TinyScreen, store: FolderStore | CountedWriter) -> list[PackResult]:
    plates = read_screen(tiny.root, CONFIG.screen).plates
    return list(pack_plates(Packing(ScreenDirectory(tiny.root), 2, SIZE, CONFIG.pack, store), plates))


def contents(store: FolderStore) -> dict[str, bytes]:
    return {key: store.get(key) for key in store.list("")}


def workers_of(parent: int) -> list[int]:
    """Process ids of a process's workers and of the one that forked them."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            state, above = (process / "stat").read_text().rpartition(")")[2].split()[:2]
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if int(above) == parent and state != "Z" and b"components.core.workers" in command:
            found += [int(process.name), *workers_of(int(process.name))]
    return found


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_for(done: object, what: str) -> None:
    deadline = time.monotonic() + 60
    while not done():  # type: ignore[operator]
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def test_the_store_is_the_same_to_the_byte_and_so_is_the_count_of_requests(
    tiny: TinyScreen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    stores, summaries, puts = [], [], []
    for number, least in enumerate((1e99, 0)):
        monkeypatch.setattr(packing, "PROCESSES_FROM", least)
        monkeypatch.setattr(packing, "cores", lambda: 2)
        store, out = FolderStore(tmp_path / f"store{number}"), tmp_path / f"out{number}"
        summaries.append(run(CONFIG, tiny.root, store, out / "screen.json", out / "holdout.json", out / "labels.csv"))
        stores.append(contents(store))
        puts.append(store.requests["puts"])
    assert puts[0] - puts[1] == 80, "the chunks, which processes write"
    assert stores[0] == stores[1]
    assert summaries[0].requests == summaries[1].requests
    assert sum("/c." in key for key in stores[0]) == 80


@pytest.mark.usefixtures("in_processes")
def test_a_bad_image_leaves_nothing_of_its_plate_and_those_before_it_whole(tiny: TinyScreen, tmp_path: Path):
    store = FolderStore(tmp_path / "store")
    # All its checksums are right, so only the decoder notices.
    tiny.image("HUVEC-02", 1, "C02", 2, 5).write_bytes(raw_png(SIZE, zlib.compress(b"\0" * SIZE)))
    with pytest.raises(InputError) as in_process:
        pack(tiny, store)
    kept = {key.split("/")[1].rpartition("-")[0] for key in store.list("plates/")}
    assert kept == {"HUVEC-01_Plate1", "HUVEC-01_Plate2"}
    assert sum(key.endswith("/plate.json") for key in store.list("plates/")) == 2
    assert sum("/c." in key for key in store.list("plates/")) == 20
    packing.PROCESSES_FROM = 1e99
    with pytest.raises(InputError) as in_thread:
        pack(tiny, FolderStore(tmp_path / "other"))
    assert type(in_process.value) is type(in_thread.value)
    assert str(in_process.value) == str(in_thread.value)
    assert "C02_s2_w5.png: channel w5 (mitochondria) of well C02, site 2: the image data cannot" in str(in_thread.value)


@pytest.mark.usefixtures("in_processes")
def test_copied_files_are_recognised_by_processes(tiny: TinyScreen, tmp_path: Path):
    store = FolderStore(tmp_path / "store")
    first = pack(tiny, store)
    for path in tiny.root.rglob("*.png"):
        os.utime(path, ns=(1, 1))
    assert pack(tiny, store) == [PackResult(each.prefix, each.packed, reused=True) for each in first]


@pytest.mark.usefixtures("in_processes")
def test_a_killed_worker_is_one_clear_error_and_the_next_run_finishes(tiny: TinyScreen, tmp_path: Path):
    store = FolderStore(tmp_path / "store")
    fifo = tiny.image("RPE-01", 1, "B03", 1, 3)
    content = fifo.read_bytes()
    fifo.unlink()
    os.mkfifo(fifo)  # whoever reads it waits, and can be killed meanwhile
    killed: list[int] = []
    done = threading.Event()

    def kill() -> None:
        try:
            wait_for(lambda: len(workers_of(os.getpid())) == 3, "workers")
            time.sleep(0.5)
            killed.append(max(workers_of(os.getpid())))
            os.kill(killed[0], signal.SIGKILL)
        finally:
            time.sleep(1.5)
            while threading.main_thread().is_alive() and not done.is_set():  # whoever else waits for the file is let go
                _let_go(fifo)
                time.sleep(0.01)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with pytest.raises(StepError) as raised:
            pack(tiny, store)
    finally:
        done.set()
        killer.join()
    assert str(raised.value) == (
        "a worker process was killed (SIGKILL), most often because memory ran out; raise "
        "cluster.steps.normalize.memory_gib or lower its cpu and run again: what is finished is not done again"
    )
    assert killed
    assert workers_of(os.getpid()) == []
    fifo.unlink()
    fifo.write_bytes(content)
    assert len(pack(tiny, store)) == 8


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_their_parent_and_a_rerun_finishes(tiny: TinyScreen, tmp_path: Path, how: signal.Signals):
    store = FolderStore(tmp_path / "store")
    fifo = tiny.image("RPE-01", 1, "B03", 1, 3)
    content = fifo.read_bytes()
    fifo.unlink()
    os.mkfifo(fifo)
    program = (
        "from tests.components.core.screen.test_packing_in_processes import pack, packing\n"
        "from components.core.storage.folder_store import FolderStore\n"
        "import sys, pathlib, types\n"
        "packing.PROCESSES_FROM, packing.cores = 0, lambda: 2\n"
        "pack(types.SimpleNamespace(root=pathlib.Path(sys.argv[1])), FolderStore(pathlib.Path(sys.argv[2])))\n"
    )
    root = str(Path(__file__).parents[4])
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tiny.root), str(store.root)],
        env={**os.environ, "PYTHONPATH": root},
        cwd=root,
        stderr=subprocess.DEVNULL,
    )
    wait_for(lambda: any(key.endswith("/plate.json") for key in store.list("plates/")), "a plate")
    workers = workers_of(process.pid)
    assert len(workers) == 3, "one that imports, and two that work"
    process.send_signal(how)
    if how is signal.SIGINT:  # the batch that waits for its file is seen to its end
        wait_for(lambda: process.poll() is not None or _let_go(fifo), "the end")
    process.wait()
    wait_for(lambda: all(map(gone, workers)), f"{workers} outlive their parent")
    fifo.unlink()
    fifo.write_bytes(content)
    assert len(pack(tiny, store)) == 8
    undisturbed = FolderStore(tmp_path / "undisturbed")
    pack(tiny, undisturbed)
    # But for a plate with another file in it when the run was ended, which has no record.
    whole = {key.rpartition("/")[0] for key in store.list("plates/") if key.endswith("/plate.json")}
    assert [key for key in store.list("plates/") if "/".join(key.split("/")[:2]) in whole] == undisturbed.list(
        "plates/"
    )


def _let_go(fifo: Path) -> bool:
    """Lets readers of a pipe find it at its end; says that the waiting is not over."""
    try:
        os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        return False
    return False


def test_the_program_is_not_run_again_by_its_workers(tiny: TinyScreen, tmp_path: Path):
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        "print('body', __name__, flush=True)\n"
        "from pathlib import Path\n"
        "from tests.components.core.screen.test_packing_in_processes import pack, packing, CountedWriter, FolderStore\n"
        "import types\n"
        "packing.PROCESSES_FROM, packing.cores = 0, lambda: 2\n"
        "store = FolderStore(Path(sys.argv[2]))\n"
        "pack(types.SimpleNamespace(root=Path(sys.argv[1])), CountedWriter(store))\n"
        "print(sum('/c.' in key for key in store.list('')))\n"
    )
    root = str(Path(__file__).parents[4])
    done = subprocess.run(
        [sys.executable, str(program), str(tiny.root), str(tmp_path / "store")],
        env={**os.environ, "PYTHONPATH": root},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("body __main__\n80\n", "")
