"""The contract of every component: every parameter of its signature reaches the step's `main` under its own name.

The sources are read, not imported: importing a training step costs seconds of torch.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "components"
STEPS = sorted(path.parent.name for path in ROOT.glob("*/component.py"))
# The keyword of main that comes from component parameters of other names.
RENAMED = {"bases": {"base", "second_base"}}
# Outputs that stay in the pod.
INNER = {("pseudo_label", "weights")}


def tree(step: str, file: str) -> ast.Module:
    return ast.parse((ROOT / step / file).read_text(encoding="utf-8"))


def function(module: ast.Module, name: str) -> ast.FunctionDef:
    return next(node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == name)


def parameters(node: ast.FunctionDef) -> list[str]:
    return [argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)]


def names_in(node: ast.AST) -> set[str]:
    return {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}


def test_bad_input_is_one_line_and_exit_code_2(tmp_path):
    flags = ("--config", "demo", "--set", "pretrain.epoch=3", "--fold", "0", "--backbone", "x")
    command = [sys.executable, "-m", "components.pretrain", *flags, "--screen", str(tmp_path), "--weights", "w"]
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT.parent, env=environment, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith("error: ")
    assert "pretrain.epoch: unknown key" in done.stderr


@pytest.mark.parametrize("step", STEPS)
def test_main_gets_every_parameter_under_its_own_name(step: str):
    component = function(tree(step, "component.py"), step)
    (call,) = (node for node in ast.walk(component) if isinstance(node, ast.Call) and names_in(node.func) == {"main"})
    assert call.args == []
    own = parameters(function(tree(step, "step.py"), "main"))
    # A component without a configuration takes that of the manifest, in place of the command line's.
    expected = own if "config" in parameters(component) else [name for name in own if name != "config"]
    assert [keyword.arg for keyword in call.keywords] == expected
    assigned = {
        node.targets[0].id: node.value
        for node in component.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    for keyword in call.keywords:
        assert keyword.arg is not None
        value = assigned[keyword.value.id] if getattr(keyword.value, "id", None) in assigned else keyword.value  # type: ignore[attr-defined]
        sources = set() if (step, keyword.arg) in INNER else RENAMED.get(keyword.arg, {keyword.arg})
        assert names_in(value) & set(parameters(component)) == sources, keyword.arg
    used = set().union(*(names_in(statement) for statement in component.body))
    assert set(parameters(component)) <= used
