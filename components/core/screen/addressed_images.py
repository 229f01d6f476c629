"""A screen whose tables may name images in buckets, by `s3://BUCKET/KEY`; all other paths are the screen's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Lock

from components.core.errors import InputError
from components.core.screen.screen_source import FileFacts, ScreenSource, UnreadableError

SCHEME = "s3://"


class AddressedImages:
    """A ScreenSource over another one, and over the buckets that paths name.

    Args:
        own: the screen's own files.
        open_bucket: the source of a bucket, by `s3://BUCKET`; it pickles for other processes.
    """

    def __init__(self, own: ScreenSource, open_bucket: Callable[[str], ScreenSource]) -> None:
        self._own, self._open_bucket = own, open_bucket
        self._buckets: dict[str, ScreenSource] = {}
        self._lock = Lock()

    def __reduce__(self) -> tuple[object, ...]:
        return AddressedImages, (self._own, self._open_bucket)

    def check(self) -> None:
        """See ScreenSource.check."""
        self._own.check()

    def address(self, path: str = "") -> str:
        """See ScreenSource.address."""
        return path if path.startswith(SCHEME) else self._own.address(path)

    def list_files(self, folder: str = "") -> Sequence[FileFacts]:
        """See ScreenSource.list_files."""
        source, inside, prefix = self._source_of(folder)
        try:
            return source.list_files(inside)
        except UnreadableError as error:
            raise _named(error, prefix) from None

    def list_folders(self, folder: str = "") -> Sequence[str]:
        """See ScreenSource.list_folders."""
        source, inside, _ = self._source_of(folder)
        return source.list_folders(inside)

    def list_trees(self, folders: Sequence[str]) -> Sequence[FileFacts]:
        """See ScreenSource.list_trees."""
        found: list[FileFacts] = []
        for prefix, some in self._by_source(folders).items():
            source = self._own if not prefix else self._bucket(prefix)
            listed = source.list_trees([folder[len(prefix) :] for folder in some])
            found += [facts._replace(name=prefix + facts.name) for facts in listed] if prefix else listed
        return found

    def read_many(self, paths: Sequence[str]) -> list[bytes]:
        """See ScreenSource.read_many."""
        parts = self._by_source(paths)
        if not parts.keys() - {""}:
            return self._own.read_many(paths)
        found: dict[str, bytes] = {}
        for prefix, some in parts.items():
            source = self._own if not prefix else self._bucket(prefix)
            try:
                contents = source.read_many([path[len(prefix) :] for path in some])
            except UnreadableError as error:
                raise _named(error, prefix) from None
            found |= zip(some, contents, strict=True)
        return [found[path] for path in paths]

    def _by_source(self, paths: Sequence[str]) -> dict[str, list[str]]:
        """The paths of each bucket, by the beginning that they share (`s3://BUCKET/`), and the screen's own under ''."""
        parts: dict[str, list[str]] = {}
        for path in paths:
            parts.setdefault(_prefix(path), []).append(path)
        return parts

    def _source_of(self, path: str) -> tuple[ScreenSource, str, str]:
        """The source of a path, the path in it, and the beginning that was cut."""
        prefix = _prefix(path)
        return (self._bucket(prefix), path[len(prefix) :], prefix) if prefix else (self._own, path, "")

    def _bucket(self, prefix: str) -> ScreenSource:
        with self._lock:
            if prefix not in self._buckets:
                bucket = prefix.rstrip("/")
                try:
                    self._buckets[prefix] = self._open_bucket(bucket)
                except InputError as error:
                    advice = f"if the tables' images are elsewhere, set screen.path_prefixes to {{{bucket}: FOLDER}}"
                    raise InputError(f"{error}; {advice}") from None
            return self._buckets[prefix]


def _prefix(path: str) -> str:
    """`s3://BUCKET/` of a path in a bucket; empty for the screen's own."""
    if not path.startswith(SCHEME):
        return ""
    end = path.find("/", len(SCHEME))
    return f"{path}/" if end < 0 else path[: end + 1]


def _named(error: UnreadableError, prefix: str) -> UnreadableError:
    return UnreadableError(prefix + error.path, error.reason, error.missing)
