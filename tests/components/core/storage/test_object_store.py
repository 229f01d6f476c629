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
from boto3.s3.transfer import TransferConfig
from obstore.store import MemoryStore

from components.core.errors import InputError, StepError
from components.core.storage import s3
from components.core.storage.object_store import ObjectStore

OPERATIONS: dict[str, Callable[[ObjectStore, Path], object]] = {
    "check": lambda store, _: store.check(),
    "get": lambda store, _: store.get("a"),
    "get_many": lambda store, _: store.get_many(["a"]),
    "put": lambda store, _: store.put("a", b"1"),
    "put_many": lambda store, _: store.put_many([("a", b"1")]),
    "put_if_version": lambda store, _: store.put_if_version("a", b"1"),
    "get_versioned": lambda store, _: store.get_versioned("a"),
    "replace": lambda store, _: store.put_if_version("a", b"1", '"0"'),
    "list": lambda store, _: store.list(),
    "delete": lambda store, _: store.delete("a"),
    "upload_file": lambda store, path: store.upload_file(path, "a"),
    "download_file": lambda store, path: store.download_file("a", path),
}


def test_addresses_prefixes_and_a_pickled_store_name_the_same_object(store: ObjectStore) -> None:
    store.check()
    store.put("deep/key", b"1")
    assert store.uri("deep/key") == f"s3://cellsignal/{store.prefix}/deep/key"
    assert ObjectStore(f"s3://cellsignal/{store.prefix}/deep/").get("key") == b"1"
    assert ObjectStore(f"minio://cellsignal/{store.prefix}").get("deep/key") == b"1"
    pickled = pickle.dumps(store)
    assert pickle.loads(pickled).get("deep/key") == b"1"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert os.environ[name].encode() not in pickled
        assert os.environ[name] not in repr(store)
    for whole in (ObjectStore("s3://cellsignal"), ObjectStore(Path("/somewhere"))):
        with pytest.raises(InputError, match="refusing to delete the whole store"):
            whole.delete_prefix("")
    for uri in ("", "gs://bucket/x", "s3://", "s3://[bucket/x", "bucket/with/slash"):
        with pytest.raises(InputError, match="write"):
            ObjectStore(uri)


def test_folder_markers_are_no_objects_and_a_name_may_be_a_folder_too(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("empty/", "full/", ""):  # as a console creates a folder, also that of the store itself
        store._s3.control.put_object(Bucket=store.bucket, Key=f"{store.prefix}/{key}", Body=b"")
    store.put("full/empty.txt", b"")
    assert store.list() == ["full/empty.txt"]
    objects, folders = store.list_level("")
    assert (list(objects), folders) == ([], ["empty", "full"])
    assert [found.key for found in store.list_level("full/")[0]] == ["full/empty.txt"]
    assert store.list_level("empty/") == ([], [])
    monkeypatch.setattr(store, "_objects", MemoryStore())  # SeaweedFS has either a file or a folder of one name
    store.put_many([("a", b"1"), ("a/b", b"2")])
    assert store.list() == ["a", "a/b"]
    objects, folders = store.list_level("")
    assert ([each.key for each in objects], folders) == (["a"], ["a"])


@pytest.mark.parametrize("wrong", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "bucket"])
def test_every_operation_reports_refused_credentials_and_a_missing_bucket_in_one_line(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wrong: str
) -> None:
    (tmp_path / "file").write_bytes(b"content")
    if wrong == "bucket":
        stranger, message = ObjectStore("s3://no-such-bucket"), r"no-such-bucket.* (no such|has no) bucket.*create it"
    else:
        monkeypatch.setenv(wrong, "wrong-credential")
        stranger, message = ObjectStore(store.uri("")), r"refused to \w+ \(.*correct AWS_ACCESS_KEY_ID"
    for name, action in OPERATIONS.items():
        if (wrong, name) == ("bucket", "replace"):  # SeaweedFS compares the version first
            continue
        with pytest.raises(InputError, match=message) as caught:
            action(stranger, tmp_path / "file")
        for unwanted in ("\n", "wrong-credential", os.environ["AWS_SECRET_ACCESS_KEY"]):
            assert unwanted not in str(caught.value)


def test_a_dead_or_silent_endpoint_is_reported_in_seconds(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed, socket.socket() as silent:
        for each in (closed, silent):
            each.bind(("127.0.0.1", 0))
        silent.listen()
        for each in (closed, silent):
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://user:p@ssword@127.0.0.1:{each.getsockname()[1]}")
            begun = time.monotonic()
            with pytest.raises(InputError, match=r"no answer from http://127.0.0.1:\d+ .*start the store") as caught:
                ObjectStore("s3://cellsignal").check()
            assert time.monotonic() - begun < 40, "the client waits 60 s by default, and retries"
            assert "ssword" not in str(caught.value)


def test_rejects_an_endpoint_that_is_no_address(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for url, problem in (
        ("localhost:9000", "Invalid endpoint: localhost:9000"),
        ("http://[::1", "Invalid IPv6 URL"),
        ("http://user:password@a_b:9000", "Invalid endpoint: http://a_b:9000"),
    ):
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        message = f"object store: {problem}; write AWS_ENDPOINT_URL as http://HOST:PORT or https://HOST"
        with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
            ObjectStore("s3://cellsignal")


def test_a_conditional_write_whose_answer_was_lost_is_recognised_by_its_data(store: ObjectStore) -> None:
    store.put("a", b"first")
    _, version = store.get_versioned("a")
    for _ in range(2):  # the second attempt finds what the first one wrote
        assert store.put_if_version("b", b"mine")
        assert store.put_if_version("a", b"mine", version)
    assert not store.put_if_version("b", b"other")
    assert not store.put_if_version("a", b"other", version)


def test_a_server_failure_is_a_step_error_that_names_the_key(store: ObjectStore) -> None:
    too_long = uuid.uuid4().hex * 20  # the server refuses path segments over 255 bytes
    with pytest.raises(StepError, match=f"s3://cellsignal/{store.prefix}/{too_long[:50]}.*put failed"):
        store.put(too_long, b"1")


def test_a_large_object_that_is_replaced_during_its_download_is_downloaded_again(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "TRANSFER", TransferConfig(multipart_threshold=s3.MIB, multipart_chunksize=s3.MIB))
    size, requests = 2 * s3.MIB, 0
    store.put("latest.pt", b"1" * size)

    def replace_before_the_second_part(**_: object) -> None:
        nonlocal requests
        requests += 1
        if requests == 2:
            store.put("latest.pt", b"2" * size)

    def require_another_version(params: dict[str, str], **_: object) -> None:
        params["IfMatch"] = '"0"'

    events = store._s3.control.meta.events
    events.register("before-parameter-build.s3.GetObject", replace_before_the_second_part)
    store.download_file("latest.pt", tmp_path / "latest.pt")
    assert (tmp_path / "latest.pt").read_bytes() == b"2" * size
    assert requests == 4, "two parts, twice"
    events.register("before-parameter-build.s3.GetObject", require_another_version)
    with pytest.raises(StepError, match=r"/latest\.pt: download failed at .*did not match expected ETag") as caught:
        store.download_file("latest.pt", tmp_path / "latest.pt")
    assert "\n" not in str(caught.value)
