"""JSON records in the object store: one check for damage and for records of a newer version. Pydantic; reads nothing."""

from __future__ import annotations

import json
from typing import ClassVar, Self

from pydantic import Field, ValidationError

from components.core.config.base import FrozenModel
from components.core.errors import InputError


class StoredRecord(FrozenModel):
    """Base of records that another version of cellsignal may have written.

    A subclass raises the default of `schema_version` with each change that earlier versions cannot read.
    """

    KIND: ClassVar[str] = "record"
    """What errors call it."""
    IF_DAMAGED: ClassVar[str] = "delete it and run the same command again"
    """What errors advise."""

    schema_version: int = Field(1, ge=1, description="version of the record's format")

    @classmethod
    def parse(cls, content: bytes, address: str) -> Self:
        """Parses a record.

        Args:
            content: JSON in UTF-8.
            address: the record's address, for errors.

        Raises:
            InputError: the record is damaged, or of a newer version.
        """
        supported = cls.model_fields["schema_version"].default
        try:
            values = json.loads(content)
            version = int(values["schema_version"])
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{address}: damaged, not a {cls.KIND}; {cls.IF_DAMAGED}") from None
        if version > supported:
            raise InputError(
                f"{address}: {cls.KIND} of schema {version}, newer than this version reads ({supported}); upgrade cellsignal"
            )
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "record"
            raise InputError(
                f"{address}: damaged, not a {cls.KIND} ({field}: {first['msg']}); {cls.IF_DAMAGED}"
            ) from None
