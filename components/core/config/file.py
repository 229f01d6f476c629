"""Configuration sections and files: found by name or path, read as YAML, changed field by field; mistakes become one line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from difflib import get_close_matches
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from yaml.error import MarkedYAMLError

from components.core.errors import InputError

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=1)]


class FrozenModel(BaseModel):
    """An immutable pydantic model that rejects unknown keys and numbers that are not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, allow_inf_nan=False)


S = TypeVar("S", bound=BaseModel)


def shipped_configs() -> Path:
    """The folder of the configurations in the package."""
    return Path(__file__).resolve().parents[3] / "pipelines" / "configs"


def find_config(name_or_file: str, named_in: Path | None = None) -> Path:
    """The file of a shipped configuration's name, or of a path, first beside the file that names it; else InputError."""
    if named_in is not None and (beside := named_in.parent / name_or_file).is_file():
        return beside
    shipped = shipped_configs() / f"{name_or_file}.yaml"
    if shipped.is_file():
        return shipped
    path = Path(name_or_file)
    if path.is_file():
        return path
    names = sorted(p.stem for p in shipped_configs().glob("*.yaml"))
    near = [f"; did you mean {name}?" for name in get_close_matches(name_or_file, names, n=1)]
    where, folder = ("", "") if named_in is None else (f"{named_in}: ", f" in {named_in.parent} or {Path.cwd()}")
    raise InputError(
        f"{where}config {name_or_file!r}: no such file{folder}, nor one of the shipped configurations "
        f"({', '.join(names)}){''.join(near)}"
    )


Files = Sequence[tuple[Path, Mapping[str, Any]]]
"""A configuration's file and its content, after those that it extends."""


def parse(cls: type[S], data: Any, source: str, changes: Sequence[str] = (), files: Files = ()) -> S:
    """Validates plain data as a model; all mistakes become one line.

    Args:
        cls: the model.
        data: plain data, changes applied.
        source: name of the data in messages.
        changes: KEY=VALUE of --set; a mistake in one of them is reported with the change, not with the source.
        files: what the data were read from; a mistake is reported with the file that has it.

    Raises:
        InputError: with the source, the field, the expected and the actual value.
    """
    if not isinstance(data, Mapping):
        raise InputError(f"{source}: expected a mapping of sections, got {type(data).__name__}")
    try:
        model = cls.model_validate(data)
    except ValidationError as error:
        errors = error.errors()
        # A list whose only items are wrong counts as too short as well.
        lists = {each["loc"][: depth + 1] for each in errors for depth in range(len(each["loc"]) - 1)}
        errors = [each for each in errors if each["type"] != "too_short" or each["loc"] not in lists]
        found = [(e["loc"], _explain(e, cls, ["extends"] if files else [])) for e in errors]
    else:
        found = list(_booleans_as_numbers(data, model.model_dump()))
        if not found:
            return model
    raise refusal(found, source, changes, files)


def refusal(
    found: Iterable[tuple[Sequence[int | str], str]], source: str, changes: Sequence[str], files: Files
) -> InputError:
    """The error of mistakes, each with its location; consecutive ones of one source are listed under one name."""
    located = [(_origin(location, source, changes, files), text) for location, text in found]
    groups = [(origin, [text for _, text in group]) for origin, group in groupby(located, key=itemgetter(0))]
    return InputError("; ".join(f"{origin}: {'; '.join(texts)}" for origin, texts in groups))


def _origin(location: Sequence[int | str], source: str, changes: Sequence[str], files: Files) -> str:
    """The last change that set a field or a parent of it, else the last file that has it, else the source.

    A file or source comes with the last change inside the field, if any.
    """
    field = [str(part) for part in location]
    keys = [(change, change.partition("=")[0].split(".")) for change in reversed(changes)]
    for change, key in keys:
        if field[: len(key)] == key:
            return f"--set {change}"
    inside = [f" with --set {change}" for change, key in keys if field and key[: len(field)] == field]
    having = [str(path) for path, content in files if _gives(content, field)]
    return [source, *having][-1] + "".join(inside[:1])


def _gives(content: Mapping[str, Any], field: Sequence[str]) -> bool:
    """Whether a file gives a section or, of a section of fields, this field."""
    section = content.get(field[0]) if field else None
    return section is not None and (len(field) == 1 or not isinstance(section, dict) or field[1] in section)


def _booleans_as_numbers(given: Any, taken: Any, location: tuple[int | str, ...] = ()) -> Iterator[tuple[Any, str]]:
    """The booleans (YAML's true, yes, on) of plain data that a model has taken as the numbers 0 and 1."""
    if isinstance(given, bool) and isinstance(taken, int | float) and not isinstance(taken, bool):
        yield location, f"{'.'.join(map(str, location))}: input should be a number, got {_shown(given)}"
    elif isinstance(given, Mapping) and isinstance(taken, Mapping):
        for key, value in given.items():
            yield from _booleans_as_numbers(value, taken.get(key), (*location, key))
    elif isinstance(given, list | tuple) and isinstance(taken, list | tuple):
        for n, (value, own) in enumerate(zip(given, taken, strict=False)):
            yield from _booleans_as_numbers(value, own, (*location, n))


_PLAIN_WORDS = {
    "tuple_type": "input should be a list",
    "dict_type": "input should be a section of KEY: VALUE",
    "model_type": "input should be a section of KEY: VALUE",
    "string_type": "input should be text",
    "bool_type": "input should be true or false",
    "bool_parsing": "input should be true or false",
}
"""What pydantic calls a valid tuple, dictionary, instance, string or boolean, by its types of errors."""


def _explain(error: Any, cls: type[BaseModel], other_keys: Sequence[str]) -> str:
    # pydantic adds which of several types it tried.
    field = ".".join(str(part) for part in error["loc"] if not _TRIED_TYPE.fullmatch(str(part))) or "config"
    if error["type"] == "extra_forbidden":
        known = _keys_beside(error["loc"], cls) + (list(other_keys) if len(error["loc"]) == 1 else [])
        near = get_close_matches(str(error["loc"][-1]), known, n=1)
        return f"{field}: unknown key; " + (f"did you mean {near[0]}?" if near else "remove it or correct its spelling")
    message = _PLAIN_WORDS.get(error["type"], error["msg"]).removeprefix("Value error, ")
    if error["type"] in ("too_short", "too_long"):
        message = message.replace("Tuple", "list").replace(" after validation", "")
    message = message[0].lower() + message[1:]
    given = error.get("input")
    hidden = isinstance(given, Mapping) or error["type"] in ("missing", "value_error")
    shown = "" if hidden else f", got {_shown(given)}"
    return f"{field}: {message}{shown}" if error["loc"] else f"{message}{shown}"


_TRIED_TYPE = re.compile(r"int|float|str|bool|constrained-\w+|(tuple|literal|list|dict)\[.*\]")


def _shown(given: Any) -> str:
    """A value as in YAML where Python's word differs."""
    return json.dumps(given) if given is None or isinstance(given, bool) else repr(given)


def _keys_beside(location: Sequence[int | str], cls: type[BaseModel]) -> list[str]:
    """The keys of the model that a location belongs to."""
    model = cls
    for part in location[:-1]:
        known = model.model_fields.get(str(part))
        inner = _models(known.annotation) if known is not None else []
        if inner:
            model = inner[0]
        elif isinstance(part, str):
            return []
    return list(model.model_fields)


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The models in an annotation: the annotation itself, or those in its list, mapping or union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that appears twice in a mapping: YAML forbids it, and PyYAML would keep the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As SafeLoader's."""
        keys = set()
        for key, _ in node.value:
            if key.value in keys:
                raise MarkedYAMLError(problem=f"{key.value} appears twice", problem_mark=key.start_mark)
            keys.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """The content of a YAML file; an empty file is an empty mapping.

    Raises:
        InputError: not YAML, or not text.
    """
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text") from None
    except MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"{path}{line}: not valid YAML ({error.problem})") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    return {} if data is None else data


def read_config(name_or_file: str, extended_by: tuple[Path, ...] = ()) -> list[tuple[Path, dict[str, Any]]]:
    """A configuration's file and its content, after those of the configurations that it extends.

    Args:
        name_or_file: a shipped configuration, or a path; that in `extends` is relative to the file's folder.
        extended_by: the files that led to this one, the latest last.

    Raises:
        InputError: no such file, not YAML, no mapping, or a file that extends itself.
    """
    path = find_config(name_or_file, extended_by[-1] if extended_by else None)
    if path.resolve() in [each.resolve() for each in extended_by]:
        raise InputError(f"{path}: extends itself, by {' and '.join(str(each) for each in extended_by)}")
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise InputError(f"{path}: expected a mapping of sections, got {type(data).__name__}")
    if "extends" not in data:
        return [(path, data)]
    base = data.pop("extends")
    if not isinstance(base, str):
        raise InputError(f"{path}: extends: expected the name or file of a configuration, got {base!r}")
    return [*read_config(base, (*extended_by, path)), (path, data)]


def merged(files: Files) -> dict[str, Any]:
    """Contents over those of the files that they extend, section by section.

    Fields replace the fields of the same section; a field that is a mapping or a list is replaced whole.
    """
    data: dict[str, Any] = {}
    for _, contents in files:
        for section, content in contents.items():
            earlier = data.get(section)
            data[section] = earlier | content if isinstance(earlier, dict) and isinstance(content, dict) else content
    return data


def apply_change(data: Any, change: str, defaults: Any = None) -> None:
    """Applies one KEY=VALUE to plain data, in place; the value is YAML, list items are addressed by index.

    Args:
        data: a dumped configuration, or content of a file, which may leave fields out.
        change: KEY=VALUE.
        defaults: a dumped configuration: a change inside a list or mapping that the file leaves out keeps the rest of it.

    Raises:
        InputError: not KEY=VALUE, a value that is not YAML, or a field inside something that has no fields.
    """
    key, equals, value = change.partition("=")
    if not equals or not key:
        raise InputError(f"--set {change!r}: expected KEY=VALUE, for example pretrain.epochs=4")
    *parents, last = key.split(".")
    try:
        parsed = yaml.load(value, _UniqueKeys)
    except yaml.YAMLError:
        raise InputError(f"--set {change!r}: the value is not valid YAML") from None
    node = data
    for depth, name in enumerate(parents):
        defaults = _child(defaults, name)
        if isinstance(node, dict) and node.get(name) is None:
            node[name] = deepcopy(defaults) or {}
        _check_index(node, name, change, parents[:depth])
        node = _child(node, name)
        if not isinstance(node, dict | list):
            raise InputError(f"--set {change!r}: {'.'.join(parents[: depth + 1])} has no fields")
    _check_index(node, last, change, parents)
    node[int(last) if isinstance(node, list) else last] = parsed


def _check_index(node: Any, name: str, change: str, path: Sequence[str]) -> None:
    """Refuses a name that is no index of a list."""
    if isinstance(node, list) and _child(node, name) is None:
        items = f"{len(node)} item{'' if len(node) == 1 else 's'}"
        raise InputError(f"--set {change!r}: {'.'.join(path)} has {items}, counted from 0; got {name}")


def _child(node: Any, name: str) -> Any:
    """A part of plain data; None if it does not exist."""
    if isinstance(node, list):
        return node[int(name)] if name in map(str, range(len(node))) else None
    return node.get(name) if isinstance(node, dict) else None


def differences(earlier: Any, now: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """The fields in which two configurations differ.

    Args:
        earlier: plain data, for example a dumped configuration. A missing key counts as None.
        now: the other side.
        prefix: dotted name of the compared part.

    Returns:
        Dotted name -> (earlier value, value now). Lists are compared whole.
    """
    if isinstance(earlier, dict) and isinstance(now, dict):
        found: dict[str, tuple[Any, Any]] = {}
        for key in {**earlier, **now}:
            found.update(differences(earlier.get(key), now.get(key), f"{prefix}.{key}" if prefix else str(key)))
        return found
    return {} if earlier == now else {prefix: (earlier, now)}


def first_difference(earlier: Any, now: Any) -> str:
    """The first field, by name, in which two configurations differ; empty if they are equal."""
    return min(differences(earlier, now), default="")
