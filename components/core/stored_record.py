"""JSON records that another version of cellsignal may have written: one check for damage and for newer versions. Pydantic."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import Field, ValidationError

from components.core.config.file import FrozenModel
from components.core.errors import InputError

if TYPE_CHECKING:
    from components.core.storage.object_store import ObjectStore


class StoredRecord(FrozenModel):
    """Base of these records. A subclass raises the default of `schema_version` with each change that earlier versions cannot read.

    Attributes:
        KIND: name of the record in errors.
        IF_DAMAGED: advice in errors.
    """

    KIND: ClassVar[str] = "record"
    IF_DAMAGED: ClassVar[str] = "delete it and run the same command again"

    schema_version: int = Field(1, ge=1, description="version of the record's format")

    @classmethod
    def load(cls, store: ObjectStore, key: str) -> Self:
        """Reads a record from a store; MissingObjectError if there is none, otherwise as `parse`."""
        return cls.parse(store.get(key), store.uri(key))

    @classmethod
    def parse(cls, content: bytes, address: str) -> Self:
        """A record from its JSON; InputError, which gives its address, if it is damaged, or of another version."""
        try:
            record = cls.model_validate_json(content)
        except ValidationError as error:
            version = _version_of(content)
            cls._refuse_newer(version, address)  # a newer one may have fields that this one lacks
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "record"
            what = "of another version of cellsignal" if version else "damaged"
            raise InputError(
                f"{address}: {what}, not a {cls.KIND} ({field}: {first['msg']}); {cls.IF_DAMAGED}"
            ) from None
        cls._refuse_newer(record.schema_version, address)
        return record

    def to_json(self) -> bytes:
        """The record's content in the store."""
        return self.model_dump_json(indent=1).encode()

    @classmethod
    def _refuse_newer(cls, version: int, address: str) -> None:
        supported = cls.model_fields["schema_version"].default
        if version > supported:
            raise InputError(
                f"{address}: {cls.KIND} of schema {version}, newer than this version reads ({supported}); upgrade cellsignal"
            )


def _version_of(content: bytes) -> int:
    try:
        return int(json.loads(content)["schema_version"])
    except (ValueError, KeyError, TypeError):
        return 0
