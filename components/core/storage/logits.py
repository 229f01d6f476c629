"""The logits directory: what training hands to ensemble, and ensemble to assign. Files only, no store.

`logits.npz` holds for each role the wells' id_codes and their logits, (W, K) with K all classes of the vocabulary;
`meta.json` says which cell type and folds they come from, with the training history.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.core.errors import InputError

ROLES = ("oof", "unlabelled", "holdout")
LOGITS_FILE, META_FILE = "logits.npz", "meta.json"


@dataclass(frozen=True)
class WellLogits:
    """Logits of treatment wells of one role."""

    ids_W: tuple[str, ...]
    """id_codes, all different"""
    logits_WK: NDArray[np.float32]
    """logits over all classes of the vocabulary, (W, K)"""

    def take(self, ids: tuple[str, ...]) -> NDArray[np.float32]:
        """The logits in the order of `ids`, all of which must be here."""
        row = {id_code: w for w, id_code in enumerate(self.ids_W)}
        return self.logits_WK[[row[id_code] for id_code in ids]]


@dataclass(frozen=True)
class LogitsDirectory:
    """The whole content of a logits directory."""

    wells: Mapping[str, WellLogits]
    """by role: oof, unlabelled, holdout"""
    meta: Mapping[str, Any]
    """cell_type, folds, history, and fold where it is one fold's"""

    @property
    def cell_type(self) -> str:
        """The cell type of all its wells."""
        return str(self.meta["cell_type"])

    @property
    def classes(self) -> int:
        """K."""
        return int(self.wells["oof"].logits_WK.shape[1])


def write_logits(directory: Path, content: LogitsDirectory) -> None:
    """Writes both files into an existing directory; whoever calls makes the directory appear whole."""
    arrays: dict[str, Any] = {}
    for role in ROLES:
        arrays[f"{role}_ids"] = np.array(content.wells[role].ids_W, dtype=np.str_)
        arrays[f"{role}_logits"] = content.wells[role].logits_WK.astype(np.float32)
    np.savez(directory / LOGITS_FILE, **arrays)
    (directory / META_FILE).write_text(json.dumps(content.meta, indent=1) + "\n", encoding="utf-8")


def read_logits(directory: Path) -> LogitsDirectory:
    """Reads and checks a logits directory.

    Raises:
        InputError: a file is missing, damaged or incomplete, shapes disagree, a value is not finite, or a well is
            there twice.
    """
    meta = _read_meta(directory / META_FILE)
    path = directory / LOGITS_FILE
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for role in ROLES for name in (f"{role}_ids", f"{role}_logits")}
    except OSError as error:
        raise InputError(f"{path}: cannot read the logits ({error.strerror or error})") from None
    except KeyError as error:
        raise InputError(f"{path}: no array {error.args[0]!r}; not a logits file of this version") from None
    except (ValueError, zipfile.BadZipFile, EOFError):
        raise InputError(f"{path}: damaged; run the step that wrote it again") from None
    wells = {role: _checked(path, role, arrays[f"{role}_ids"], arrays[f"{role}_logits"]) for role in ROLES}
    widths = {role: content.logits_WK.shape[1] for role, content in wells.items()}
    if len(set(widths.values())) != 1:
        raise InputError(
            f"{path}: roles have different numbers of classes ({widths}); run the step that wrote it again"
        )
    return LogitsDirectory(wells, meta)


def _checked(path: Path, role: str, ids_W: NDArray[Any], logits_WK: NDArray[Any]) -> WellLogits:
    if logits_WK.ndim != 2 or ids_W.shape != logits_WK.shape[:1]:
        raise InputError(f"{path}: {role} has ids of shape {ids_W.shape} and logits of shape {logits_WK.shape}")
    ids = tuple(str(id_code) for id_code in ids_W)
    if len(set(ids)) != len(ids):
        twice = next(id_code for n, id_code in enumerate(ids) if id_code in ids[:n])
        raise InputError(f"{path}: {role} well {twice} is there twice; run the step that wrote it again")
    bad = ~np.isfinite(logits_WK).all(axis=1)
    if bad.any():
        raise InputError(
            f"{path}: {role} well {ids[int(bad.argmax())]} has a logit that is not finite; training diverged, "
            "lower its learning rate"
        )
    return WellLogits(ids, logits_WK.astype(np.float32))


def _read_meta(path: Path) -> dict[str, Any]:
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot read it ({error.strerror})") from None
    except ValueError:
        raise InputError(f"{path}: not valid JSON; run the step that wrote it again") from None
    missing = [name for name in ("cell_type", "folds", "history") if not isinstance(meta, dict) or name not in meta]
    if missing:
        raise InputError(f"{path}: no field {missing[0]!r}; not written by this version")
    return dict(meta)
