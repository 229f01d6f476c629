"""One retrains a fingerprint at a time; the others hear how it ended; a claim of the dead is taken over. On both kinds of store."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from components.core.errors import ContactError, InputError, StepError
from components.core.storage.folder_store import FolderStore
from components.core.storage.object_store import ObjectStore
from pipelines.retraining import turn as module
from pipelines.retraining.turn import Claim, Patience, in_progress, turn

Store = ObjectStore | FolderStore
QUICK = Patience(beat=0.1, stale=1.0, poll=0.02)
PATH = "retrainings/tiny/0/turn.json"


def silent(_: str) -> None:
    return None


def test_of_many_at_once_one_works_and_the_others_hear_of_its_end(either_store: Store) -> None:
    working, most, ended, heard = 0, 0, [], []
    counting, all_wait = threading.Lock(), threading.Event()

    def hear(line: str) -> None:
        heard.append(line)
        if len(heard) == 7:
            all_wait.set()

    def one() -> None:
        nonlocal working, most
        with turn(either_store, PATH, hear, QUICK) as followed:
            if followed is not None:
                followed.raise_failure()
                ended.append(followed.claim.state)
                return
            with counting:
                working += 1
                most = max(most, working)
            all_wait.wait(30)
            time.sleep(1.5)  # longer than a claim lives without being renewed
            with counting:
                working -= 1

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert all_wait.wait(30)
    claim = in_progress(either_store, PATH)
    assert claim is not None
    assert claim.process == os.getpid()
    for thread in threads:
        thread.join()
    assert most == 1
    assert ended == ["done"] * 7
    assert len(heard) == 7
    assert all("no second one is started" in line for line in heard)
    assert in_progress(either_store, PATH) is None


@pytest.mark.parametrize("error", [InputError("well B03"), StepError("no memory"), ContactError("lost")])
def test_who_follows_fails_as_the_other_did(either_store: Store, error: Exception) -> None:
    begun = threading.Event()

    def fail() -> None:
        with turn(either_store, PATH, silent, QUICK):
            begun.set()
            time.sleep(0.5)
            raise error

    def work() -> None:
        with pytest.raises(type(error)):
            fail()

    other = threading.Thread(target=work)
    other.start()
    begun.wait()
    with turn(either_store, PATH, silent, QUICK) as followed:
        assert followed is not None
        with pytest.raises(type(error), match=f"{error}.*which was followed"):
            followed.raise_failure()
    other.join()
    with turn(either_store, PATH, silent, QUICK) as followed:
        assert followed is None, "who comes after a failure tries again"


def test_a_killed_process_is_replaced_at_once(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    code = (
        "import sys, time; from pathlib import Path\n"
        "from components.core.storage.folder_store import FolderStore\n"
        "from pipelines.retraining.turn import turn\n"
        f"with turn(FolderStore(Path(sys.argv[1])), {PATH!r}, print): print('mine', flush=True); time.sleep(60)\n"
    )
    root = str(Path(__file__).resolve().parents[3])
    killed = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "store")],
        stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": root},
    )  # fmt: skip
    assert killed.stdout is not None
    assert killed.stdout.readline() == b"mine\n"
    assert in_progress(store, PATH) is not None
    killed.kill()
    killed.wait()
    assert in_progress(store, PATH) is None
    begun = time.monotonic()
    with turn(store, PATH, silent, Patience(stale=600)) as followed:
        assert followed is None
    assert time.monotonic() - begun < 5


def test_a_claim_of_another_machine_is_taken_over_when_nobody_renews_it(either_store: Store) -> None:
    stranger = Claim(id="0" * 32, host="elsewhere", process=1, started="1")
    either_store.put(PATH, stranger.model_dump_json().encode())
    assert in_progress(either_store, PATH) == stranger
    heard: list[str] = []
    begun = time.monotonic()
    with turn(either_store, PATH, heard.append, QUICK) as followed:
        assert followed is None
    assert QUICK.stale <= time.monotonic() - begun < 10 * QUICK.stale
    assert heard == ["process 1 on elsewhere is retraining the same; it is followed, and no second one is started"]


def test_who_was_taken_over_writes_nothing_over_the_new_claim(either_store: Store) -> None:
    with turn(either_store, PATH, silent, QUICK) as followed:
        assert followed is None
        other = Claim(id="1" * 32, host="elsewhere", process=1, started="1")
        either_store.put(PATH, other.model_dump_json().encode())
        time.sleep(3 * QUICK.beat)
    assert in_progress(either_store, PATH) == other


def test_damage_is_nobodys_claim(either_store: Store) -> None:
    either_store.put(PATH, b"{")
    assert in_progress(either_store, PATH) is None
    with turn(either_store, PATH, silent, QUICK) as followed:
        assert followed is None


def test_a_number_that_another_process_got_is_not_the_same_process() -> None:
    mine = Claim.mine()
    assert not mine.process_gone()
    assert mine.model_copy(update={"started": "0"}).process_gone()
    assert not mine.model_copy(update={"started": "0", "host": "elsewhere"}).process_gone()
    assert module._started(os.getpid())


def test_another_container_of_the_machines_name_is_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the host's network a container has its name, but numbers of processes are its own."""
    mine = Claim.mine().model_copy(update={"process": 2**22 + 1})
    assert mine.process_gone()
    elsewhere = tmp_path / "pid"
    elsewhere.symlink_to("pid:[1]")
    monkeypatch.setattr(module, "_PROCESSES", elsewhere)
    assert not mine.process_gone()


def test_a_process_that_proc_hides_is_not_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = Claim.mine()
    gone = mine.model_copy(update={"process": 2**22 + 1})
    monkeypatch.setattr(module, "_started", lambda process: "")
    assert not mine.process_gone()
    assert gone.process_gone()
