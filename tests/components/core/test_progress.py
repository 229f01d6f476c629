import errno
import json
import multiprocessing
import os
from pathlib import Path

import pytest

from components.core import progress
from components.core.errors import InputError, StepError


@pytest.fixture
def events(tmp_path, monkeypatch):
    path = tmp_path / "events.jsonl"
    monkeypatch.setenv(progress.EVENTS_VARIABLE, str(path))

    def read():
        return [json.loads(line) for line in path.read_text().splitlines()]

    return read


def test_a_task_labels_its_events_and_ends_with_its_duration(events):
    with progress.task("pretrain", fold=1, cell_type=None, backbone="small"):
        progress.advance("sites", 3, 9)
    progress.emit("outside")
    start, advance, finish, outside = events()
    labels = {"step": "pretrain", "fold": 1, "backbone": "small"}
    assert [e["event"] for e in (start, advance, finish)] == ["start", "advance", "finish"]
    for event in (start, advance, finish):
        assert labels.items() <= event.items()
        assert "cell_type" not in event
    assert advance.items() >= {"what": "sites", "done": 3, "total": 9}.items()
    assert finish["seconds"] >= 0
    assert "step" not in outside
    assert start["time"] <= finish["time"]


def test_a_failure_is_reported_by_kind_and_raised_again(events, capsys):
    with pytest.raises(InputError), progress.task("normalize"):
        raise InputError("train.csv: field plate is 'one'")
    assert capsys.readouterr().err == "", "an input error speaks for itself"
    with pytest.raises(ZeroDivisionError), progress.task("assign", fold=2):
        raise ZeroDivisionError("division\nby zero")
    assert "Traceback" in capsys.readouterr().err
    with pytest.raises(KeyboardInterrupt), progress.task("assign"):
        raise KeyboardInterrupt
    failed = [e for e in events() if e["event"] == "failed"]
    assert [(e["kind"], e["message"]) for e in failed] == [
        ("input", "train.csv: field plate is 'one'"),
        ("step", "ZeroDivisionError: division by zero"),
        ("step", "KeyboardInterrupt:"),
    ]
    assert "fold" not in failed[2], "labels of an earlier task are gone"
    assert not any(e["event"] == "finish" for e in events())


def emit_many(path: str, label: int) -> None:
    os.environ[progress.EVENTS_VARIABLE] = path
    for n in range(200):
        progress.emit("epoch", label=label, n=n, padding="x" * 200)


def test_parallel_steps_do_not_mix_their_lines_in_one_file(tmp_path: Path):
    path = tmp_path / "events.jsonl"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=emit_many, args=(str(path), label), daemon=True) for label in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    events = [json.loads(line) for line in path.read_text().splitlines()]
    for label in range(3):
        assert [e["n"] for e in events if e["label"] == label] == list(range(200))


def test_events_of_other_kinds_and_lines_cut_short_are_skipped(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    done = {"event": "finish", "step": "infer", "fold": 1, "seconds": 2.0}
    odd = [b"{}", b"[1]", b"7", b"\xff\xfe", b'{"event": "invented", "x": 1}']
    file.write_bytes(b"\n".join([*odd, json.dumps(done).encode(), b'{"event": "fini']))
    assert progress.finished_tasks(file) == [{"step": "infer", "fold": 1, "seconds": 2.0}]


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "/x/w.bin"),
            "input",
            "/x/w.bin: No such file or",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "/x/w.bin"),
            "step",
            "/x/w.bin: the disk is full (mounted at /)",
        ),
        (OSError(errno.EPIPE, "Broken pipe"), "step", "BrokenPipeError: [Errno 32] Broken pipe"),
    ],
)
def test_an_error_of_the_system_is_reported_as_the_command_line_words_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, kind: str, message: str
):
    monkeypatch.setenv(progress.EVENTS_VARIABLE, str(tmp_path / "events"))
    with pytest.raises((OSError, InputError, StepError)), progress.task("pretrain"):
        raise error
    failed = json.loads((tmp_path / "events").read_text().splitlines()[-1])
    assert (failed["event"], failed["kind"]) == ("failed", kind)
    assert failed["message"].startswith(message)
