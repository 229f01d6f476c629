"""MkDocs hook: writes the page configuration.md from the configuration's models, so that fields are described once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from components.core.config import RunConfig

HEAD = """# Configuration

One YAML file describes a run. It is validated before anything starts and written into the run's results. A file holds only what
differs from the defaults below; `--set KEY=VALUE` changes single fields, elements of lists by index (`backbones.0.stem=24`).
`extends: NAME_OR_FILE` takes another configuration's fields where the file gives none of its own.

```yaml
name: my-screen
extends: rxrx1
screen:
  image_size: 512
  holdout_experiments: [HUVEC-16, RPE-07]
pretrain:
  epochs: 80
```

| shipped | for |
|---|---|
| `cpu-small` | small images on CPUs, in minutes; all labels are learned |
| `gpu-1h` | large images on a GPU, RxRx1 in about an hour; all labels are learned; never trained |
| `demo` | a simulated screen on two CPU cores, in minutes, by the whole method; two experiments are held out |
| `growth` | the growth chart of the [method](method.md) |
| `mitocheck` | [single cells](mitocheck.md), by the settings of `cpu-small` |
| `published` | the [original run](method.md#the-published-profile) on RxRx1, on GPUs |
| `rxrx1` | the same with two experiments held out and what we recommend instead |

`local`, `cluster`, `card` and `promotion` do not affect results: changing them recomputes nothing.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated page."""
    files.append(File.generated(config, "configuration.md", content="\n".join(page())))
    return files


def page() -> Iterator[str]:
    """The page's lines: top-level fields, then a section for each nested model."""
    yield HEAD
    fields = RunConfig.model_fields
    plain = {name: field for name, field in fields.items() if model_of(field) is None}
    yield from table("", plain)
    for name, field in fields.items():
        model = model_of(field)
        if model is not None:
            yield f"\n## `{name}`\n\n{(model.__doc__ or '').strip()}\n"
            yield from table(name, model.model_fields)


def table(prefix: str, fields: dict[str, FieldInfo]) -> Iterator[str]:
    """The table of some fields; a nested model's fields follow with its name before theirs."""
    yield "| field | default | description |\n|---|---|---|"
    yield from rows(prefix, fields)


def rows(prefix: str, fields: dict[str, FieldInfo]) -> Iterator[str]:
    """One table row a field."""
    for name, field in fields.items():
        path = f"{prefix}.{name}" if prefix else name
        model = model_of(field)
        if model is not None and field.annotation is model and prefix:
            yield f"| `{path}` | | {escaped(field.description or (model.__doc__ or '').strip())} |"
            yield from rows(path, model.model_fields)
            continue
        yield f"| `{path}` | {default(field)} | {escaped(field.description or '')} |"


def model_of(field: FieldInfo) -> type[BaseModel] | None:
    """The model of a nested section, or of a list's elements; None for a plain field."""
    for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def default(field: FieldInfo) -> str:
    """A field's default as YAML writes it; empty for a section, whose fields have their own."""
    if field.is_required():
        return "required"
    value: Any = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel) or (isinstance(value, tuple) and value and isinstance(value[0], BaseModel)):
        return ""
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def escaped(text: str) -> str:
    """Text for a cell of a table."""
    return text.replace("|", "\\|").replace("<", "&lt;")
