"""The workflows of .github as data: their jobs, steps and scripts. For tests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".github" / "workflows"
FILES = sorted(FOLDER.glob("*.yml"))
SHELL = ["bash", "-euo", "pipefail"]


@dataclass(frozen=True)
class Job:
    """One job: the name of its file, its own, and its content."""

    workflow: str
    name: str
    content: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.workflow}: {self.name}"

    def step(self, name: str) -> dict[str, Any]:
        """The step of a name."""
        (found,) = (step for step in self.content["steps"] if step.get("name") == name)
        return dict(found)

    def used(self, action: str) -> bool:
        """Whether a step uses an action, given as OWNER/NAME."""
        return any(step.get("uses", "").startswith(f"{action}@") for step in self.content["steps"])


def load(file: Path) -> dict[str, Any]:
    """A workflow; its `on`, which YAML 1.1 takes for true, under that name."""
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    content["on"] = content.pop(True)
    return dict(content)


def jobs() -> list[Job]:
    """Of all workflows."""
    return [Job(file.name, name, job) for file in FILES for name, job in load(file)["jobs"].items()]


def job(workflow: str, name: str) -> Job:
    """The job of a name."""
    (found,) = (each for each in jobs() if (each.workflow, each.name) == (workflow, name))
    return found


def scripts() -> Iterator[tuple[str, str]]:
    """Every `run:` of a step: where it is, and its text."""
    for each in jobs():
        for number, step in enumerate(each.content["steps"]):
            if "run" in step:
                yield f"{each}, {step.get('name', number)}", step["run"]
