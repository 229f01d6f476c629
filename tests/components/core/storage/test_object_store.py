"""The object store in a bucket of a real server: addresses, refused credentials, missing buckets, endpoints that do not answer."""

from __future__ import annotations

import os
import pickle
import re
import socket
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from obstore.store import MemoryStore

from components.core.errors import InputError, StepError
from components.core.storage.object_store import ObjectStore

OPERATIONS: dict[str, Callable[[ObjectStore, Path], object]] = {
    "check": lambda store, _: store.check(),
    "get": lambda store, _: store.get("a"),
    "get_many": lambda store, _: store.get_many(["a"]),
    "put": lambda store, _: store.put("a", b"1"),
    "put_many": lambda store, _: store.put_many([("a", b"1")]),
    "put_if_absent": lambda store, _: store.put_if_absent("a", b"1"),
    "get_versioned": lambda store, _: store.get_versioned("a"),
    "put_if_version": lambda store, _: store.put_if_version("a", b"1", '"0"'),
    "list": lambda store, _: store.list(),
    "delete": lambda store, _: store.delete("a"),
    "upload_file": lambda store, path: store.upload_file(path, "a"),
    "download_file": lambda store, path: store.download_file("a", path),
}


@pytest.fixture
def local_file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    return path


def assert_one_clean_line(message: str, *secrets: str) -> None:
    assert "\n" not in message
    for secret in secrets:
        assert secret not in message


def test_addresses_and_prefixes_name_the_same_object(store: ObjectStore) -> None:
    store.check()
    store.put("deep/key", b"1")
    assert store.uri("deep/key") == f"s3://cellsignal/{store.prefix}/deep/key"
    assert ObjectStore(f"s3://cellsignal/{store.prefix}/", "/deep").get("key") == b"1"
    assert ObjectStore(f"minio://cellsignal/{store.prefix}").get("deep/key") == b"1"
    with pytest.raises(InputError, match="refusing to delete the whole store"):
        ObjectStore(store.bucket).delete_prefix("")


@pytest.mark.parametrize("uri", ["", "gs://bucket/x", "s3://", "s3://[bucket/x", "bucket/with/slash"])
def test_rejects_an_address_of_no_store(store: ObjectStore, uri: str) -> None:
    with pytest.raises(InputError, match="write"):
        ObjectStore(uri)


def test_a_pickled_store_works_and_holds_no_credentials(store: ObjectStore) -> None:
    store.put("a", b"1")
    pickled = pickle.dumps(store)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert os.environ[name].encode() not in pickled
        assert os.environ[name] not in repr(store)
    assert pickle.loads(pickled).get("a") == b"1"


def test_folder_markers_are_no_objects(store: ObjectStore) -> None:
    for key in ("empty/", "full/", ""):  # as a console creates a folder, also that of the store itself
        store._s3.control.put_object(Bucket=store.bucket, Key=f"{store.prefix}/{key}", Body=b"")
    store.put("full/empty.txt", b"")
    assert store.list() == ["full/empty.txt"]
    objects, folders = store.list_level("")
    assert (list(objects), folders) == ([], ["empty", "full"])
    assert [found.key for found in store.list_level("full/")[0]] == ["full/empty.txt"]


def test_an_object_is_listed_beside_objects_below_its_name(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_objects", MemoryStore())  # SeaweedFS has either a file or a folder of one name
    store.put_many([("a", b"1"), ("a/b", b"2")])
    assert store.list() == ["a", "a/b"]
    objects, folders = store.list_level("")
    assert ([each.key for each in objects], folders) == (["a"], ["a"])


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_every_operation_reports_refused_credentials(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, local_file: Path, name: str
) -> None:
    monkeypatch.setenv(name, "wrong-credential")
    stranger = ObjectStore("cellsignal", store.prefix)
    for action in OPERATIONS.values():
        with pytest.raises(InputError, match=r"refused .*correct AWS_ACCESS_KEY_ID") as caught:
            action(stranger, local_file)
        assert_one_clean_line(str(caught.value), "wrong-credential", os.environ["AWS_SECRET_ACCESS_KEY"])


def test_every_operation_names_a_missing_bucket(store: ObjectStore, local_file: Path) -> None:
    elsewhere = ObjectStore("no-such-bucket")
    for name, action in OPERATIONS.items():
        if name == "put_if_version":  # SeaweedFS compares the version first
            continue
        with pytest.raises(InputError, match=r"no-such-bucket.* (no such bucket|has no bucket).*create it") as caught:
            action(elsewhere, local_file)
        assert_one_clean_line(str(caught.value), os.environ["AWS_SECRET_ACCESS_KEY"])


def test_a_dead_or_silent_endpoint_is_reported_in_seconds(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed, socket.socket() as silent:
        for each in (closed, silent):
            each.bind(("127.0.0.1", 0))
        silent.listen()
        for each in (closed, silent):
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://user:p@ssword@127.0.0.1:{each.getsockname()[1]}")
            begun = time.monotonic()
            with pytest.raises(InputError, match=r"no answer from http://127.0.0.1:\d+ .*start the store") as caught:
                ObjectStore("cellsignal").check()
            assert time.monotonic() - begun < 40, "the client waits 60 s by default, and retries"
            assert_one_clean_line(str(caught.value), "ssword")


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("localhost:9000", "Invalid endpoint: localhost:9000"),
        ("http://[::1", "Invalid IPv6 URL"),
        ("http://user:password@a_b:9000", "Invalid endpoint: http://a_b:9000"),
    ],
)
def test_rejects_an_endpoint_that_is_no_address(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, url: str, problem: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    message = f"object store: {problem}; write AWS_ENDPOINT_URL as http://HOST:PORT or https://HOST"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        ObjectStore("cellsignal")


def test_a_conditional_write_whose_answer_was_lost_is_recognised_by_its_data(store: ObjectStore) -> None:
    store.put("a", b"first")
    _, version = store.get_versioned("a")
    for _ in range(2):  # the second attempt finds what the first one wrote
        assert store.put_if_absent("b", b"mine")
        assert store.put_if_version("a", b"mine", version)
    assert not store.put_if_absent("b", b"other")
    assert not store.put_if_version("a", b"other", version)


def test_a_server_failure_is_a_step_error_that_names_the_key(store: ObjectStore) -> None:
    too_long = uuid.uuid4().hex * 20  # the server refuses path segments over 255 bytes
    with pytest.raises(StepError, match=f"s3://cellsignal/{store.prefix}/{too_long[:50]}.*put failed") as caught:
        store.put(too_long, b"1")
    assert_one_clean_line(str(caught.value))
