"""One bucket and prefix of an S3 store: the only module that talks to object storage on behalf of the steps.

Keys are relative to the prefix. Every client error leaves here as one line that names the bucket and key.
"""

from __future__ import annotations

import os
import re
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import obstore
from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError
from obstore.exceptions import BaseError

from components.core.errors import InputError, StepError
from components.core.storage.endpoint import IN_FLIGHT, TRANSFER, Endpoint
from components.core.storage.interface import MissingObjectError, StoredObject
from components.core.storage.side_by_side import side_by_side

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import ObjectIdentifierTypeDef

_MISSING_KEY = {"NoSuchKey", "404", "NotFound"}
_REFUSED = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "ExpiredToken", "InvalidToken", "401", "403"}
_CONFLICT = {"ConditionalRequestConflict", "409"}
_CONDITION = {"PreconditionFailed", "412"} | _CONFLICT
_CONFLICTS = 5  # answers 409 to one conditional write before another writer is taken to have won
_DELETE_BATCH = 1000  # the S3 protocol's limit for one DeleteObjects


PAGE = 1000
"""Objects that one request lists."""


class ObjectStore:
    """Reads and writes objects under one prefix of a bucket; safe in threads, and pickled without its credentials.

    Attributes:
        bucket: name of the bucket.
        prefix: prefix of every key, without slashes at its ends; may be empty.
        requests: object requests made so far: "gets", "puts" (a multipart upload counts once) and "lists" (each page).
    """

    def __init__(self, endpoint: Endpoint, bucket: str, prefix: str = "") -> None:
        self.bucket = bucket
        self.prefix = prefix.strip("/")
        self.requests = {"gets": 0, "puts": 0, "lists": 0}
        self._endpoint = endpoint
        self._control = endpoint.control_client()
        self._bulk = endpoint.bulk_client(bucket)
        self._counting = threading.Lock()
        self._requests = ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="store")

    @classmethod
    def connect(cls, uri_or_bucket: str, prefix: str = "", environment: Mapping[str, str] | None = None) -> ObjectStore:
        """Opens a store by bucket name or URI, at the endpoint that the AWS environment variables name.

        No request is made; `check` says whether the store can be used.

        Args:
            uri_or_bucket: `bucket`, `s3://bucket[/prefix]` or, as KFP writes it, `minio://bucket[/prefix]`.
            prefix: further prefix below that of the URI.
            environment: variables that lead to the store; None for this process's own.

        Raises:
            InputError: not a bucket or such a URI, or no credentials in the environment.
        """
        bucket, inner = parse_uri(uri_or_bucket) if "://" in uri_or_bucket else (uri_or_bucket, "")
        if not bucket or "/" in bucket:
            raise InputError(f"object store {uri_or_bucket!r}: write a bucket name or s3://BUCKET/PREFIX")
        endpoint = Endpoint.from_environment(os.environ if environment is None else environment)
        return cls(endpoint, bucket, "/".join(p for p in (inner.strip("/"), prefix.strip("/")) if p))

    def __repr__(self) -> str:
        return f"ObjectStore({self.uri('')!r})"

    def __reduce__(self) -> tuple[Callable[[str, str], ObjectStore], tuple[str, str]]:
        # The other process connects again from its own environment: credentials never travel in a pickle.
        return ObjectStore.connect, (self.bucket, self.prefix)

    def below(self, prefix: str) -> ObjectStore:
        """The store under a further prefix, with its own request count."""
        return ObjectStore(self._endpoint, self.bucket, self._key(prefix))

    def elsewhere(self, uri: str) -> ObjectStore:
        """The store of another s3://bucket[/prefix] at the same endpoint, with its own request count.

        Raises:
            InputError: not such an address.
        """
        return ObjectStore(self._endpoint, *parse_uri(uri))

    def uri(self, key: str) -> str:
        """The object's address, s3://bucket/key."""
        return f"s3://{self.bucket}/{self._key(key)}".rstrip("/")

    def check(self, instead: str = "create it, or correct --store or store.bucket") -> None:
        """Asks the store for one listing, impatiently.

        Args:
            instead: what to do where there is no such bucket.

        Raises:
            InputError: the endpoint does not answer, refuses the credentials or has no such bucket.
        """
        where = self._endpoint.address
        try:
            self._endpoint.control_client(impatient=True).list_objects_v2(
                Bucket=self.bucket, Prefix=self.prefix, MaxKeys=1
            )
        except ClientError as error:
            code = _code(error)
            if code == "NoSuchBucket":
                raise InputError(f"s3://{self.bucket}: {where} has no such bucket; {instead}") from None
            if code in _REFUSED:
                raise InputError(
                    f"s3://{self.bucket}: {where} refused the credentials ({code}); "
                    f"{self._endpoint.correct}, or let them list this bucket"
                ) from None
            raise InputError(f"s3://{self.bucket}: {where} cannot be used ({self._say(error)})") from None
        except (BotoCoreError, ValueError) as error:
            raise InputError(
                f"s3://{self.bucket}: no answer from {where} ({type(error).__name__}); "
                "start the store or correct AWS_ENDPOINT_URL"
            ) from None

    def get(self, key: str) -> bytes:
        """The object's bytes.

        Raises:
            MissingObjectError: there is none.
            InputError: the store refuses the credentials.
            StepError: the store failed.
        """
        return bytes(self.view(key))

    def view(self, key: str) -> memoryview:
        """The object's bytes where the client received them. Raises as `get`."""
        self._count("gets")
        with self._errors(key, "get"):
            return memoryview(obstore.get(self._bulk, self._key(key)).bytes())

    def get_many(self, keys: Sequence[str]) -> list[bytes]:
        """The objects' bytes in the order of the keys, 32 requests in flight. Raises as `get`."""
        # Threads, because awaiting obstore costs the client five times the CPU time of waiting for it.
        return list(self._requests.map(self.get, keys))

    def put(self, key: str, data: bytes) -> None:
        """Writes the object whole, replacing an earlier one.

        Raises:
            InputError: the store refuses the credentials.
            StepError: the store failed.
        """
        self._count("puts")
        with self._errors(key, "put"):
            obstore.put(self._bulk, self._key(key), data, use_multipart=False)

    def put_many(self, items: Iterable[tuple[str, bytes]]) -> None:
        """Writes objects, 32 requests in flight; returns when all are acknowledged. Raises as `put`.

        The items are drawn as requests finish, so a generator keeps no more than those in memory.
        """
        # Threads, as get_many's, and for the same reason.
        side_by_side(self.put, items, self._requests, IN_FLIGHT)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Writes the object only where there is none; of several writers one gets True.

        Raises:
            InputError: the store refuses the credentials.
            StepError: the store failed.
        """
        return self._put_where(key, data, IfNoneMatch="*") == "done"

    def get_versioned(self, key: str) -> tuple[bytes, str]:
        """The object's bytes and its ETag, from one answer. Raises as `get`."""
        self._count("gets")
        with self._errors(key, "get"):
            answer = self._control.get_object(Bucket=self.bucket, Key=self._key(key))
            return answer["Body"].read(), answer["ETag"]

    def put_if_version(self, key: str, data: bytes, version: str) -> bool:
        """Replaces the object only where it still has this ETag; of several writers one gets True.

        Where an answer was lost, what is there tells who wrote it: data that no other writer would write make that exact.

        Raises:
            InputError: the store refuses the credentials.
            StepError: the store failed.
        """
        for _ in range(_CONFLICTS):
            outcome = self._put_where(key, data, IfMatch=version)
            if outcome != "conflict":
                return outcome == "done"
        return False

    def exists(self, key: str) -> bool:
        """Whether there is an object at the key. Raises as `get`, but no MissingObjectError."""
        self._count("gets")
        with self._errors(key, "head"):
            try:
                self._control.head_object(Bucket=self.bucket, Key=self._key(key))
            except ClientError as error:
                if _code(error) in _MISSING_KEY:
                    return False
                raise
            return True

    def list(self, prefix: str = "") -> Sequence[str]:
        """All keys that start with the prefix, sorted; keys that end in a slash (folder markers) left out.

        Raises:
            InputError: the store refuses the credentials.
            StepError: the store failed.
        """
        return sorted(found.key for found in self.scan(prefix))

    def scan(self, prefix: str = "") -> Iterator[StoredObject]:
        """What `list` names, with size and time, page by page: memory does not grow with the number of objects.

        Raises:
            InputError: the store refuses the credentials.
            StepError: the store failed.
        """
        strip = len(self.prefix) + 1 if self.prefix else 0
        with self._errors(prefix, "list"):
            pages = self._control.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=self._key(prefix)
            )
            for page in pages:
                self._count("lists")
                for entry in page.get("Contents", []):
                    if not entry["Key"].endswith("/"):
                        yield StoredObject(entry["Key"][strip:], entry["Size"], entry["LastModified"])

    def list_folder(self, prefix: str) -> Sequence[tuple[str, int, str]]:
        """Name, size and ETag of the objects below a prefix, without those that have a further slash in their names.

        Args:
            prefix: empty, or ends in a slash.

        Raises:
            InputError: the store refuses the credentials.
            StepError: the store failed.
        """
        return self.list_level(prefix)[0]

    def list_level(self, prefix: str) -> tuple[Sequence[tuple[str, int, str]], Sequence[str]]:
        """What lies directly below a prefix: name, size and ETag of its objects; names of its folders.

        Args:
            prefix: empty, or ends in a slash.

        Raises:
            InputError: the store refuses the credentials.
            StepError: the store failed.
        """
        below = self._key(prefix)
        objects: list[tuple[str, int, str]] = []
        folders: list[str] = []
        with self._errors(prefix, "list"):
            pages = self._control.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=below, Delimiter="/"
            )
            for page in pages:
                self._count("lists")
                objects += _facts(page, len(below))
                folders += [found["Prefix"][len(below) :].rstrip("/") for found in page.get("CommonPrefixes", [])]
        return objects, folders

    def scan_facts(self, folder: str) -> Iterator[tuple[str, int, str]]:
        """Key, size and ETag of all objects in a folder and those in it, page by page; a twentieth of scan's processor time.

        Args:
            folder: without a slash at its end; a key that only begins alike is not in it.

        Raises:
            InputError: the store refuses the credentials.
            StepError: the store failed.
        """
        strip = len(self.prefix) + 1 if self.prefix else 0
        with self._errors(folder, "list"):
            for page in obstore.list(self._bulk, self._key(folder), chunk_size=PAGE):
                self._count("lists")
                for found in page:
                    yield found["path"][strip:], found["size"], (found["e_tag"] or "").strip('"')

    def facts(self, key: str) -> tuple[str, int, str]:
        """Key, size and ETag of one object. Raises as `get`."""
        self._count("gets")
        with self._errors(key, "head"):
            found = obstore.head(self._bulk, self._key(key))
        return key, found["size"], (found["e_tag"] or "").strip('"')

    def delete(self, key: str) -> None:
        """Deletes one object; a missing one is no error. Raises as `put`."""
        with self._errors(key, "delete"):
            self._control.delete_object(Bucket=self.bucket, Key=self._key(key))

    def delete_prefix(self, prefix: str) -> int:
        """Deletes every object whose key starts with the prefix; returns how many.

        Raises:
            InputError: the prefix would be the whole bucket, or the store refuses the credentials.
            StepError: the store failed, or kept an object.
        """
        if not self._key(prefix):
            raise InputError(f"s3://{self.bucket}: refusing to delete the whole bucket; name a prefix")
        keys = self.list(prefix)
        self.delete_many(keys)
        return len(keys)

    def delete_many(self, keys: Sequence[str]) -> None:
        """Deletes objects, a thousand a request; missing ones are no error.

        Raises:
            InputError: the store refuses the credentials.
            StepError: the store failed, or kept an object.
        """
        for start in range(0, len(keys), _DELETE_BATCH):
            with self._errors(keys[start], "delete"):
                batch: list[ObjectIdentifierTypeDef] = [
                    {"Key": self._key(key)} for key in keys[start : start + _DELETE_BATCH]
                ]
                answer = self._control.delete_objects(Bucket=self.bucket, Delete={"Objects": batch, "Quiet": True})
                for kept in answer.get("Errors", []):
                    raise StepError(f"s3://{self.bucket}/{kept.get('Key')}: delete failed ({kept.get('Code')})")

    def upload_file(self, path: Path, key: str) -> None:
        """Writes a file of any size, in parallel parts of 32 MiB; the object appears whole.

        Raises:
            InputError: the file cannot be read, or the store refuses the credentials.
            StepError: the store failed.
        """
        self._count("puts")
        try:
            with self._errors(key, "upload"):
                self._control.upload_file(str(path), self.bucket, self._key(key), Config=TRANSFER)
        except OSError as error:
            raise InputError(f"{path}: cannot be read for upload ({error.strerror})") from None

    def download_file(self, key: str, path: Path) -> None:
        """Reads an object of any size into a file, which appears whole or not at all.

        Raises:
            MissingObjectError: there is no such object.
            InputError: the file cannot be written, or the store refuses the credentials.
            StepError: the store failed.
        """
        self._count("gets")
        partial = path.with_name(f".{path.name[:100]}.{uuid.uuid4().hex[:8]}.partial")
        try:
            with self._errors(key, "download"):
                self._control.download_file(self.bucket, self._key(key), str(partial), Config=TRANSFER)
            partial.replace(path)
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror})") from None
        finally:
            partial.unlink(missing_ok=True)

    def _put_where(self, key: str, data: bytes, **condition: Any) -> Literal["done", "refused", "conflict"]:
        """Writes on a condition; "conflict" where another write of the key was under way, whatever has become of that."""
        self._count("puts")
        with self._errors(key, "conditional put"):
            try:
                self._control.put_object(Bucket=self.bucket, Key=self._key(key), Body=data, **condition)
            except ClientError as error:
                code = _code(error)
                if code not in (_CONDITION | _MISSING_KEY if "IfMatch" in condition else _CONDITION):
                    raise
                # An earlier attempt of this very call may have written the object and lost its answer.
                retried = error.response.get("ResponseMetadata", {}).get("RetryAttempts", 0) > 0
                if retried and self.exists(key) and self.get(key) == data:
                    return "done"
                return "conflict" if code in _CONFLICT else "refused"
            return "done"

    def _key(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def _count(self, kind: str, requests: int = 1) -> None:
        with self._counting:
            self.requests[kind] += requests

    def _say(self, error: BaseException) -> str:
        # obstore appends a dump of its internals, which may hold what the server answered.
        return self._endpoint.conceal(f"{type(error).__name__}: {error}".partition("Debug source")[0])[:300]

    @contextmanager
    def _errors(self, key: str, action: str) -> Iterator[None]:
        """Turns what the two clients raise into this package's errors; local file errors pass."""
        try:
            yield
        except (ClientError, BotoCoreError, Boto3Error, BaseError, FileNotFoundError, PermissionError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise self._translate(error, key, action) from None

    def _translate(self, error: Exception, key: str, action: str) -> Exception:
        uri, where = self.uri(key), self._endpoint.address
        said = str(error)
        code = _code(error) if isinstance(error, ClientError) else _quoted_code(said)
        if code == "NoSuchBucket":
            return InputError(f"{uri}: {action} failed, {where} has no bucket {self.bucket}; create it")
        if code in _REFUSED:
            return InputError(
                f"{uri}: {action} refused by {where} ({code}); {self._endpoint.correct} or the rights of that user"
            )
        if code in _MISSING_KEY or isinstance(error, FileNotFoundError):
            return MissingObjectError(uri)
        return StepError(f"{uri}: {action} failed at {where} ({self._say(error)})")


def parse_uri(uri: str) -> tuple[str, str]:
    """Bucket and key of `s3://bucket/key` or `minio://bucket/key`.

    Raises:
        InputError: another scheme, or no bucket.
    """
    try:
        parts = urlsplit(uri, allow_fragments=False)
    except ValueError:  # brackets, which a host of its own form would have
        raise InputError(f"{uri}: not an object store address; write s3://BUCKET/KEY") from None
    if parts.scheme not in ("s3", "minio") or not parts.netloc:
        raise InputError(f"{uri}: not an object store address; write s3://BUCKET/KEY")
    # A pipeline root may carry its provider's settings as a query, which is no part of the key.
    return parts.netloc, parts.path.lstrip("/")


def _facts(page: Mapping[str, Any], strip: int) -> list[tuple[str, int, str]]:
    """Key without its first characters, size and ETag of the objects of a page, folder markers left out."""
    return [
        (entry["Key"][strip:], entry["Size"], entry["ETag"].strip('"'))
        for entry in page.get("Contents", [])
        if not entry["Key"].endswith("/")
    ]


def _quoted_code(said: str) -> str:
    """The S3 error code in the message of obstore or boto3's transfers, which quote the server's answer; else empty.

    Only the place of the code counts: the answer also holds a request id, whose digits may look like one.
    """
    for pattern in (r"<Code>(\w+)</Code>", r"An error occurred \((\w+)\)", r"status code: (\d{3})\b"):
        found = re.search(pattern, said)
        if found:
            return found.group(1)
    return ""


def _code(error: ClientError) -> str:
    return error.response.get("Error", {}).get("Code", "")
