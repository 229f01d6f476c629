"""The object store against a real server: what is written comes back, and what fails says why on one line."""

from __future__ import annotations

import os
import pickle
import re
import socket
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from components.core.errors import InputError, StepError
from components.core.storage.object_store import ObjectStore, parse_uri
from components.core.storage.s3 import S3Endpoint, _quoted_code

OPERATIONS: dict[str, Callable[[ObjectStore, Path], object]] = {
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


def test_a_scan_tells_size_and_time_page_by_page(store: ObjectStore) -> None:
    store.put_many((f"site/{n:04d}", b"x" * (n % 7)) for n in range(1203))
    begun = store.requests["lists"]
    scan = store.scan("site/")
    first = next(scan)
    assert (first.key, first.size, store.requests["lists"] - begun) == ("site/0000", 0, 1)
    assert abs((datetime.now(UTC) - first.modified).total_seconds()) < 60
    assert [(found.key, found.size) for found in scan] == [(f"site/{n:04d}", n % 7) for n in range(1, 1203)]
    assert store.requests["lists"] - begun == 2


def test_many_objects_are_deleted_and_missing_ones_are_no_error(store: ObjectStore) -> None:
    keys = [f"site/{n:04d}" for n in range(1203)]
    store.put_many((key, b"") for key in [*keys, "kept"])
    store.delete_many(["none", *keys])
    store.delete_many(["none"])
    store.delete_many([])
    assert store.list() == ["kept"]


def test_the_whole_bucket_cannot_be_deleted(store: ObjectStore) -> None:
    whole = ObjectStore(store.bucket)
    with pytest.raises(InputError, match="refusing to delete the whole store"):
        whole.delete_prefix("")


def test_uris_and_prefixes_name_the_same_object(store: ObjectStore) -> None:
    store.put("deep/key", b"1")
    assert store.uri("deep/key") == f"s3://cellsignal/{store.prefix}/deep/key"
    assert ObjectStore(f"s3://cellsignal/{store.prefix}/", "/deep").get("key") == b"1"
    assert ObjectStore(f"minio://cellsignal/{store.prefix}").get("deep/key") == b"1"
    assert store.below("deep").list() == ["key"]
    assert parse_uri("minio://bucket/v2/artifacts/x") == ("bucket", "v2/artifacts/x")


@pytest.mark.parametrize("uri", ["", "gs://bucket/x", "s3://", "s3://[bucket/x", "bucket/with/slash"])
def test_what_is_no_store_is_refused(store: ObjectStore, uri: str) -> None:
    with pytest.raises(InputError, match="write"):
        ObjectStore(uri)


def test_a_pickled_store_carries_no_credentials_and_works(store: ObjectStore) -> None:
    store.put("a", b"1")
    pickled = pickle.dumps(store)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert os.environ[name].encode() not in pickled
    assert pickle.loads(pickled).get("a") == b"1"


def test_secrets_stay_out_of_reprs_and_quoted_messages(store: ObjectStore) -> None:
    endpoint = S3Endpoint.from_environment()
    secret = os.environ["AWS_SECRET_ACCESS_KEY"]
    assert secret not in repr(endpoint) + repr(store)
    assert os.environ["AWS_ACCESS_KEY_ID"] not in repr(endpoint) + repr(store)
    assert endpoint.conceal(f"a\nserver said {secret}") == "a server said ***"


def test_a_usable_store_passes_its_check(store: ObjectStore) -> None:
    store.check()


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_no_credentials_is_an_error_that_names_the_variable(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delenv(name)
    with pytest.raises(InputError, match=f"{name} is not set; set"):
        ObjectStore("cellsignal")


@pytest.mark.parametrize("action", ["check", *OPERATIONS])
@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials_are_refused_in_every_operation(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, local_file: Path, name: str, action: str
) -> None:
    monkeypatch.setenv(name, "wrong-credential")
    stranger = ObjectStore("cellsignal", store.prefix)
    with pytest.raises(InputError, match=r"refused .*correct AWS_ACCESS_KEY_ID") as caught:
        stranger.check() if action == "check" else OPERATIONS[action](stranger, local_file)
    _assert_one_clean_line(str(caught.value), "wrong-credential", os.environ["AWS_SECRET_ACCESS_KEY"])


# SeaweedFS looks at the version first: without a bucket there is none of that, and the read before it names the bucket.
@pytest.mark.parametrize("action", ["check", *(name for name in OPERATIONS if name != "put_if_version")])
def test_a_missing_bucket_is_named_in_every_operation(store: ObjectStore, local_file: Path, action: str) -> None:
    elsewhere = ObjectStore("no-such-bucket")
    with pytest.raises(InputError, match=r"no-such-bucket.* (no such bucket|has no bucket).*create it") as caught:
        elsewhere.check() if action == "check" else OPERATIONS[action](elsewhere, local_file)
    _assert_one_clean_line(str(caught.value), os.environ["AWS_SECRET_ACCESS_KEY"])


def test_a_dead_endpoint_is_noticed_at_once(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://user:password@127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    begun = time.monotonic()
    with pytest.raises(InputError, match=r"no answer from http://127.0.0.1:\d+ .*start the store or correct") as caught:
        ObjectStore("cellsignal").check()
    assert time.monotonic() - begun < 30, "refused, not retried for minutes"
    _assert_one_clean_line(str(caught.value), "password")


def test_no_message_holds_a_password_of_the_endpoint(
    store: ObjectStore, local_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://user:p@ssword@127.0.0.1:{closed.getsockname()[1]}")
    with pytest.raises(StepError, match="upload failed at") as caught:
        ObjectStore("cellsignal").upload_file(local_file, "a")
    _assert_one_clean_line(str(caught.value), "ssword")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://user:password@a_b:9000")
    with pytest.raises(InputError, match=r"Invalid endpoint: http://a_b:9000; correct AWS_ENDPOINT_URL$") as refused:
        ObjectStore("cellsignal")
    _assert_one_clean_line(str(refused.value), "password")


def test_a_silent_endpoint_is_noticed_in_seconds(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        begun = time.monotonic()
        with pytest.raises(InputError, match="no answer from"):
            ObjectStore("cellsignal").check()
        assert time.monotonic() - begun < 40, "the client waits 60 s by default, and retries"


@pytest.mark.parametrize("url", ["localhost:9000", "http://[::1"])
def test_an_endpoint_that_is_no_address_is_refused(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    with pytest.raises(InputError, match=re.escape(f"AWS_ENDPOINT_URL '{url}': write it as")):
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
    assert "\n" not in str(caught.value)


def _assert_one_clean_line(message: str, *secrets: str) -> None:
    assert "\n" not in message
    for secret in secrets:
        assert secret not in message


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("404 Not Found: <Error><Code>NoSuchKey</Code><RequestId>17d83018a1c0403</RequestId></Error>", "NoSuchKey"),
        ("<Error><Code>AccessDenied</Code><RequestId>1</RequestId></Error>", "AccessDenied"),
        ("Failed to upload a: An error occurred (NoSuchBucket) when calling the PutObject operation", "NoSuchBucket"),
        ("Server returned non-2xx status code: 403 Forbidden", "403"),
        ("connection refused (403 bytes)", ""),
    ],
)
def test_only_the_code_of_an_answer_decides_and_not_its_request_id(said: str, code: str) -> None:
    assert _quoted_code(said) == code
