"""The one store of packed plates, outputs and records: objects below a prefix of an S3 bucket, or files below a folder.

obstore reads and writes both; what boto3 does better in a bucket is in s3.py, which is loaded only for one. A folder is for one
machine, or several that share a file system. A file appears complete, by a rename from a temporary name (NAME#1). Nothing is
synced to disk: after a power cut, the digests in manifests and records show what was lost.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import LocalStore

from components.core.errors import NO_ROOM, InputError, MissingObjectError, StepError
from components.core.files import cache_folder, locked, parse_folder
from components.core.storage.digests import digest_bytes

if TYPE_CHECKING:
    from obstore import ObjectMeta
    from obstore.store import S3Store

    from components.core.storage.s3 import S3Bucket

READS = ("get", "head", "download")
"""Actions that miss an object if there is none."""
_REQUESTS_IN_FLIGHT, _FILES_IN_FLIGHT = 32, 16  # a network file system has latency, too
_TEMPORARY = re.compile(r".+#\d+")  # obstore's name of a file that it is writing
_LOCK = ".lock#0"  # for conditional writes; obstore lists no such names
_ATTEMPTS = 20
_NO_FILE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP, *_NO_FILE}


class StoredObject(NamedTuple):
    """An object in a listing; its time is the server's, its version changes with its content.

    Or an unfinished upload: an upload in parts, whose version is its id, or a temporary file of a folder.
    """

    key: str
    size: int
    modified: datetime
    version: str = ""


class ObjectStore:
    """Reads and writes objects by key, relative to the store's address; safe in threads and, as a folder, among processes.

    Pickled, it is its address: another process connects with its own credentials. Every method may raise InputError if access is
    refused, and StepError if the store failed.

    Attributes:
        root: the folder, absolute, in which each object is the file at its key; None for a bucket.
        bucket: its name; empty for a folder.
        prefix: start of every key in the bucket, without slashes at its ends; may be empty.
    """

    def __init__(self, address: str | Path) -> None:
        """Opens a store without any request; `check` reports whether it can be used.

        The address is a folder's path or file:///FOLDER; `s3://bucket[/prefix]` or, as KFP writes it, `minio://...`. InputError if
        it is none of these, or there are no usable credentials for a bucket.
        """
        self.root: Path | None = None
        self.bucket = self.prefix = ""
        self._objects: LocalStore | S3Store
        self._s3: S3Bucket | None = None
        if isinstance(address, Path) or address.startswith("file:"):
            # Not resolved: a link to a mounted disk stays as the user wrote it.
            self.root = parse_folder(address) if isinstance(address, str) else Path(os.path.abspath(address))  # noqa: PTH100
            self._base, self._objects = f"{self.root.as_posix()[1:]}/", LocalStore()
        else:
            self.bucket, inner = parse_uri(address)
            self.prefix = inner.strip("/")
            self._base = f"{self.prefix}/" if self.prefix else ""
            from components.core.storage.s3 import S3Bucket  # loads boto3

            self._s3 = S3Bucket(self.bucket)
            self._objects = self._s3.objects
        self._failures = (OSError, BaseError, *(self._s3.FAILURES if self._s3 else ()))
        self._in_flight = _REQUESTS_IN_FLIGHT if self._s3 else _FILES_IN_FLIGHT
        self._pool = ThreadPoolExecutor(self._in_flight, thread_name_prefix="store")

    def __repr__(self) -> str:
        return f"ObjectStore({self.uri('')!r})"

    def __reduce__(self) -> tuple[Callable[..., ObjectStore], tuple[str]]:
        # Credentials never travel in a pickle.
        return type(self), (self.uri(""),)

    def uri(self, key: str) -> str:
        """The object's address, s3://bucket/key or file:///folder/key."""
        if self.root:
            return (self.root / key).as_uri() if key else self.root.as_uri()
        return f"s3://{self.bucket}/{self._base}{key}".rstrip("/")

    def check(self) -> None:
        """Checks within seconds that the store can be used.

        A missing folder is created, unless the one above it is missing, too, and is not in the user's cache.
        """
        if self._s3:
            self._s3.check(self.prefix)
            return
        assert self.root is not None, "a store is a bucket or a folder"
        try:
            # No deeper elsewhere: a file system that is not mounted must not be replaced by folders on another disk.
            self.root.mkdir(parents=self.root.is_relative_to(cache_folder()), exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root) as probe:
                probe.write(b"x")
                probe.flush()
        except OSError as error:
            if error.errno not in _REFUSED:
                raise self._file_error(error, self.uri(""), "write") from None
            raise InputError(
                f"{self.uri('')}: the object store cannot be written here ({error.strerror}); create the folder, or choose another "
                "with --store"
            ) from None

    def get(self, key: str) -> bytes:
        """The object's bytes; MissingObjectError if there is none."""
        return bytes(self.view(key))

    def view(self, key: str) -> memoryview:
        """As `get`, in the client's own buffer, not copied."""
        with self._errors(key, "get"):
            return memoryview(obstore.get(self._objects, self._path(key)).bytes())

    def get_many(self, keys: Sequence[str]) -> list[bytes]:
        """The objects' bytes in the order of the keys, with many requests in flight; MissingObjectError if one is missing."""
        # Threads, because awaiting obstore costs the client five times the processor time of waiting for it.
        return list(self._pool.map(self.get, keys))

    def get_present(self, keys: Sequence[str]) -> dict[str, bytes]:
        """As `get_many`, by key, of the objects that exist."""

        def get(key: str) -> bytes | None:
            with contextlib.suppress(MissingObjectError):
                return self.get(key)
            return None

        found = zip(keys, self._pool.map(get, keys), strict=True)
        return {key: content for key, content in found if content is not None}

    def put(self, key: str, data: bytes) -> None:
        """Writes the object, replacing an earlier one; readers see the earlier or the complete new one."""
        with self._errors(key, "put"):
            self._put(key, data, use_multipart=False)

    def put_many(self, items: Iterable[tuple[str, bytes]]) -> None:
        """Writes objects with many requests in flight, and no more items of a generator than those in memory.

        Returns when all are acknowledged. The first error, of a request or of the generator, stops the rest; it is raised once no
        request is in flight, so nothing is written after the caller has cleaned up.
        """
        window: deque[Future[None]] = deque()
        try:
            for key, data in items:
                if len(window) >= self._in_flight:
                    window.popleft().result()
                window.append(self._pool.submit(self.put, key, data))
            while window:
                window.popleft().result()
        finally:
            for future in window:
                future.cancel()
            wait(window)

    def get_versioned(self, key: str) -> tuple[bytes, str]:
        """The object's bytes and their version: the ETag, or in a folder the digest; MissingObjectError if there is none."""
        with self._errors(key, "get"):
            found = obstore.get(self._objects, self._path(key))
            content = bytes(found.bytes())
            return content, digest_bytes(content) if self.root else found.meta["e_tag"] or ""

    def put_if_version(self, key: str, data: bytes, version: str = "") -> bool:
        """Writes the object only if it still has this version, or if there is none for an empty one.

        Of several writers of different data one gets True. An object that holds exactly these data counts as written, by an earlier
        attempt whose answer was lost.
        """
        with self._errors(key, "put"):
            if self.root and version:
                return self._replace_file(key, data, version)
            try:
                self._put(key, data, mode={"e_tag": version} if version else "create")
            except (AlreadyExistsError, PreconditionError, FileNotFoundError) as error:
                if isinstance(error, FileNotFoundError) and (self.root or "NoSuchBucket" in str(error)):
                    raise
                return self.get_present([key]) == {key: data}
            return True

    def exists(self, key: str) -> bool:
        """Whether there is an object at the key."""
        with contextlib.suppress(MissingObjectError):
            self.head(key)
            return True
        return False

    def head(self, key: str) -> StoredObject:
        """Size, time and version of one object; MissingObjectError if there is none."""
        with self._errors(key, "head"):
            return _stored(key, obstore.head(self._objects, self._path(key)))

    def list(self, prefix: str = "") -> Sequence[str]:
        """All keys that start with the prefix, sorted."""
        return sorted(found.key for found in self.scan(prefix))

    def scan(self, prefix: str = "") -> Iterator[StoredObject]:
        """All objects whose key starts with the prefix, a page at a time, in no promised order."""
        folder = prefix.rpartition("/")[0]
        if self.root and not (self.root / folder).is_dir():
            return
        with self._errors(prefix, "list"):
            for page in obstore.list(self._objects, f"{self._base}{folder}", chunk_size=1000):
                found = self._listed(page, prefix)
                # obstore drops the slash of an empty object "a/", which consoles create as a folder.
                empty = [] if self.root else [each.key for each in found if not each.size]
                there = dict(zip(empty, self._pool.map(self.exists, empty), strict=True))
                yield from (each for each in found if there.get(each.key, True))

    def list_level(self, prefix: str) -> tuple[Sequence[StoredObject], Sequence[str]]:
        """The objects and the names of the folders directly below a prefix, which is empty or ends in a slash."""
        with self._errors(prefix, "list"):
            found = obstore.list_with_delimiter(self._objects, f"{self._base}{prefix}".rstrip("/"))
            folders = sorted(path[len(f"{self._base}{prefix}") :] for path in found["common_prefixes"])
            return self._listed(found["objects"], prefix), folders

    def _listed(self, page: Iterable[ObjectMeta], prefix: str) -> Sequence[StoredObject]:
        found = ((each["path"][len(self._base) :], each) for each in page)
        return [_stored(key, each) for key, each in found if key and key.startswith(prefix)]

    def delete(self, key: str) -> None:
        """Deletes one object; a missing one is no error."""
        self.delete_many([key])

    def delete_prefix(self, prefix: str) -> int:
        """Deletes every object whose key starts with the prefix; returns how many. InputError for a whole bucket or folder."""
        if not f"{'' if self.root else self._base}{prefix}".strip("/"):
            raise InputError(f"{self.uri('')}: refusing to delete the whole store; name a prefix")
        keys = self.list(prefix)
        self.delete_many(keys)
        return len(keys)

    def delete_many(self, keys: Sequence[str]) -> None:
        """Deletes objects; missing ones are no error. Folders that this empties are deleted, too."""
        if self._s3:
            with self._errors(keys[0] if keys else "", "delete"):
                obstore.delete(self._objects, [self._path(key) for key in keys])
            return
        list(self._pool.map(self._delete_file, keys))
        for folder in sorted({folder for key in keys for folder in Path(key).parents if folder.name}, reverse=True):
            with contextlib.suppress(OSError):  # not empty
                self._file(folder.as_posix()).rmdir()

    def unfinished_uploads(self, prefix: str) -> Iterator[StoredObject]:
        """Uploads in parts that have neither ended nor been aborted, if the server lists them; temporary files of a folder.

        The prefix is empty or ends in a slash.
        """
        with self._errors(prefix, "list uploads"):
            if self._s3:
                for upload in self._s3.unfinished_uploads(f"{self._base}{prefix}"):
                    yield upload._replace(key=upload.key[len(self._base) :])
                return
            assert self.root is not None, "a store is a bucket or a folder"
            for directory, _, names in os.walk(self.root / prefix):
                for file in (Path(directory, name) for name in names if _TEMPORARY.fullmatch(name) and name != _LOCK):
                    with contextlib.suppress(FileNotFoundError):
                        facts = file.stat()
                        modified = datetime.fromtimestamp(facts.st_mtime, UTC)
                        yield StoredObject(file.relative_to(self.root).as_posix(), facts.st_size, modified)

    def give_up_upload(self, upload: StoredObject) -> None:
        """Frees the space of an unfinished upload; if it has ended, that is no error."""
        if self._s3 is None:
            self.delete_many([upload.key])
            return
        with self._errors(upload.key, "abort upload"):
            self._s3.give_up_upload(self._path(upload.key), upload.version)

    def upload_file(self, path: Path, key: str) -> None:
        """Writes a file of any size; the object appears complete. OSError if the file cannot be read."""
        path.open("rb").close()  # what fails later is the store
        with self._errors(key, "upload"):
            if self._s3:
                self._s3.upload(path, self._path(key))
            else:
                self._put(key, path, use_multipart=True)

    def download_file(self, key: str, path: Path) -> None:
        """Reads an object of any size into a file; not atomic, which is left to the caller.

        Raises:
            MissingObjectError: there is no such object.
            OSError: the file, which the error names, cannot be written.
        """
        with self._errors(key, "download", own=path):
            if self._s3:
                self._s3.download(self._path(key), path)
            else:
                shutil.copyfile(self._file(key), path)

    def _put(self, key: str, data: bytes | Path, **options: Any) -> None:
        """Writes an object; in a folder again, if another process deleted the directory in between."""
        for left in reversed(range(_ATTEMPTS)):
            try:
                obstore.put(self._objects, self._path(key), data, **options)
                return
            except (OSError, BaseError) as error:
                if not (left and self.root and _errno(error) == errno.ENOENT):
                    raise

    def _replace_file(self, key: str, data: bytes, version: str) -> bool:
        """Compare-and-swap of a file among processes, under the lock of the whole folder."""
        assert self.root is not None, "a bucket has its own"
        with contextlib.suppress(FileNotFoundError), locked(self.root / _LOCK):
            if digest_bytes(self._file(key).read_bytes()) == version:
                self._put(key, data, use_multipart=False)
                return True
        return False

    def _delete_file(self, key: str) -> None:
        with self._errors(key, "delete"), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            self._file(key).unlink()

    def _path(self, key: str) -> str:
        """The key as obstore takes it."""
        if not key.isprintable() or (self.root and any(part in ("", ".", "..") for part in key.split("/"))):
            raise InputError(f"{self.uri('')}: {key!r} cannot be the key of an object")
        return f"{self._base}{key}"

    def _file(self, key: str) -> Path:
        return Path(f"/{self._path(key)}")

    @contextmanager
    def _errors(self, key: str, action: str, own: Path | None = None) -> Iterator[None]:
        """Turns errors of the clients and of the store's files into this package's; those of the caller's `own` file stay."""
        try:
            yield
        except self._failures as error:
            if (
                own
                and isinstance(error, OSError)
                and (error.errno in NO_ROOM or str(error.filename).startswith(str(own)))
            ):
                raise OSError(error.errno, error.strerror, str(own)) from None  # a full disk names no file
            translated = self._s3.translated if self._s3 else self._file_error
            raise translated(error, self.uri(key), action) from None

    def _file_error(self, error: Exception, uri: str, action: str) -> Exception:
        """What a command reports of an error of the file system."""
        number = _errno(error)
        if action in READS and (number in _NO_FILE or isinstance(error, FileNotFoundError)):
            return MissingObjectError(uri)
        reason = os.strerror(number) if number else " ".join(str(error).partition("Debug source")[0].split())
        if number in _REFUSED:
            return InputError(f"{uri}: {action} refused ({reason}); correct the folder or its rights")
        advice = f"; make room on the disk of {self.root} and run the same command again" if number in NO_ROOM else ""
        return StepError(f"{uri}: {action} failed ({reason}){advice}")


def parse_uri(uri: str) -> tuple[str, str]:
    """Bucket and key of `s3://bucket/key` or `minio://bucket/key`; InputError for anything else."""
    try:
        parts = urlsplit(uri, allow_fragments=False)
    except ValueError:  # brackets, as around an IPv6 address
        parts = None
    if parts is None or parts.scheme not in ("s3", "minio") or not parts.netloc:
        raise InputError(f"{uri}: not an object store address; write s3://BUCKET/KEY")
    # A pipeline root may carry its provider's settings as a query, which is no part of the key.
    return parts.netloc, parts.path.lstrip("/")


def _errno(error: Exception) -> int | None:
    """The number of an error of the file system, which obstore quotes."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    quoted = re.search(r"\(os error (\d+)\)", str(error))
    return int(quoted[1]) if quoted else None


def _stored(key: str, meta: Mapping[str, Any]) -> StoredObject:
    return StoredObject(key, meta["size"], meta["last_modified"], (meta["e_tag"] or "").strip('"'))
