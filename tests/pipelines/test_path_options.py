"""Every option that takes a path, of every command and step: file:// is a path, and a scheme is used or refused, never a folder."""

from __future__ import annotations

import importlib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer

from components.core.command import describe_error, local_path, path_or_address, path_or_name
from components.core.storage.object_store import ObjectStore
from pipelines.cli import app
from pipelines.dag import STEPS
from tests.pipelines.tiny_run import Cellsignal
from tests.seaweedfs import S3Server

OTHER = {
    "set", "changes", "experiments", "seeds", "gpus", "gpu", "endpoint", "cell_type", "backbone", "older_than", "reason",
    "registry", "target", "base_image", "network", "keys",
    "screens", "rows", "path",  # names in a study file; NAME=DIR, where DIR is parsed as the screen of a configuration is
    "bucket", "prefix", "model", "run",  # addresses, or parts of one, which the configuration or the registry parses
}  # fmt: skip
"""Names of options with text that is no path. A path in one of them would become a folder named `s3:`."""


def walk(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """A command, or the commands of a group."""
    if not hasattr(command, "commands"):
        yield name, command
    for part, inner in getattr(command, "commands", {}).items():
        yield from walk(f"{name} {part}", inner)


OWN = dict(walk("cellsignal", typer.main.get_command(app)))
COMMANDS = [*OWN, *(f"components.{step}" for step in ("simulate", *STEPS))]


def command_of(name: str) -> Any:
    """A command of `cellsignal`, or the command line of `python -m components.STEP`."""
    if name in OWN:
        return OWN[name]
    own = typer.Typer(add_completion=False)
    own.command()(getattr(importlib.import_module(f"{name}.__main__"), name.removeprefix("components.")))
    return typer.main.get_command(own)


def path_options(command: Any) -> list[Any]:
    """The options of a command that take a path: all with text but OTHER, and all with a Path."""
    found = []
    for param in command.params:
        annotation = param.type_descriptor.annotation
        kind = (*get_args(annotation), annotation)[0]
        if kind is Path or (kind is str and param.name not in OTHER):
            found.append(param)
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_every_path_option_understands_addresses_or_refuses_them(name: str):
    command = command_of(name)
    for option in path_options(command):
        flag, parser = option.opts[0], option.type_descriptor.parameter_info.parser
        assert parser in (local_path, path_or_address, path_or_name), f"{name} {flag}: use an option of core.command"
        context = typer.Context(command)
        several = option.multiple
        (found,) = (option.process_value(context, [text] if several else text) for text in ["file:///lab%20data/x"])
        assert [str(each) for each in (found if several else [found])] == ["/lab data/x"]
        refused = ["gs://bucket/key", "s3:/bucket/key", "file://host/key", "s3:///key", ""]
        if parser is path_or_address:
            assert parser("s3://bucket/key") == "s3://bucket/key"
        else:
            refused.append("s3://bucket/key")
        for text in refused:
            with pytest.raises(typer.BadParameter) as raised:
                command.make_context(name, [flag, text] if flag.startswith("-") else [text])
            code, message = describe_error(raised.value)
            assert code == 2
            assert flag.lower() in message.lower()
            assert text in message


def test_the_commands_are_walked():
    """The test above would pass if it found no option."""
    assert {each.name for each in path_options(OWN["cellsignal run"])} == {"config", "screen", "truth", "out", "store"}
    assert {each.name for each in path_options(command_of("components.simulate"))} == {"config", "out"}


def test_a_screen_is_simulated_into_a_bucket(cellsignal: Cellsignal, config_file: Path, s3_server: S3Server):
    place = f"s3://cellsignal/simulated-{uuid.uuid4().hex}"
    small = (
        "--set",
        "simulate.treatments_per_group=3",
        "--set",
        "simulate.positive_controls=1",
        "--set",
        "screen.sites=1",
    )
    done = cellsignal("simulate", "--config", config_file, "--out", place, *small, environment=s3_server.environment())
    assert done.returncode == 0, done.stderr
    assert {path.name for path in cellsignal.folder.iterdir()} == {config_file.name}
    with pytest.MonkeyPatch.context() as patched:
        for name, value in s3_server.environment().items():
            patched.setenv(name, value)
        assert {"screen", "truth.csv"} <= {key.split("/")[0] for key in ObjectStore(place).list("")}
    assert "AWS_ACCESS_KEY_ID is not set" in cellsignal.refused("run", "--config", config_file, "--screen", place)
