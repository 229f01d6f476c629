"""Options that several commands share."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from components.core.errors import InputError
from pipelines.cli import app
from pipelines.options import timeout_seconds


@pytest.mark.parametrize(("arguments", "name"), [([], "one.yaml"), (["--config", "other.yaml"], "other.yaml")])
def test_the_environment_gives_the_default_of_config(arguments: list[str], name: str):
    done = CliRunner().invoke(app, ["plan", *arguments], env={"CELLSIGNAL_CONFIG": "one.yaml"})
    assert str(done.exception).startswith(f"config '{name}': no such file")


def test_config_is_required_without_the_variable():
    assert CliRunner().invoke(app, ["plan"], env={"CELLSIGNAL_CONFIG": ""}).exit_code == 2


@pytest.mark.parametrize("hours", [0.0, -1.0, float("nan")])
def test_rejects_a_timeout_that_is_not_above_zero(hours: float):
    with pytest.raises(InputError, match=f"--timeout {hours:g}: give hours above 0"):
        timeout_seconds(hours)
