"""A plan as JSON, for programs. Seconds, hours and bytes as numbers; names of units are in the keys."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from components.core.errors import InputError
from components.core.files import write_atomically
from pipelines.plan.dag import STEPS
from pipelines.plan.estimate import RunPlan, TaskEstimate, basis_of
from pipelines.plan.transfers import Transfer

SCHEMA = 1


def write_plan(path: Path, plan: RunPlan, gpus: Sequence[int]) -> None:
    """Writes the file, whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    try:
        write_atomically(path, json.dumps(as_data(plan, gpus), indent=1) + "\n")
    except OSError as error:
        raise InputError(f"--json {path}: cannot be written ({error.strerror})") from None


def as_data(plan: RunPlan, gpus: Sequence[int]) -> dict[str, Any]:
    """The plan as plain data."""
    hours = plan.gpu_seconds / 3600
    wells, cost = plan.wells, plan.cost
    return {
        "schema": SCHEMA,
        "config": plan.config.name,
        "screen": {
            "source": wells.source,
            "experiments": wells.experiments,
            "plates": len(wells.screen.plates),
            "wells": len(wells.fold_W),
            "sites": len(wells.fold_W) * wells.sites,
            "packed_bytes": round(plan.packed_bytes),
        },
        "gpu": plan.machines.gpu,
        "rates": plan.rates,
        "basis": plan.basis,
        "gpus_of_a_pod": plan.pod_gpus,
        "gpu_hours": hours,
        "gpu_hours_range": [hours / plan.factor, hours * plan.factor],
        "steps": {step: _step(found) for step in STEPS if (found := plan.of(step))},
        "networks": {
            name: {
                "forward_macs": network.forward_macs,
                "train_macs": network.train_macs,
                "parameters": network.parameters,
                "training_passes_per_s": _inverse(plan.pass_seconds(name, "training").value),
                "forward_passes_per_s": _inverse(plan.pass_seconds(name, "forward").value),
            }
            for name, network in plan.costs.items()
        },
        "wall": [
            {
                "gpus": count,
                "hours": (done := plan.on(count)).seconds / 3600,
                "no_schedule_beats_hours": max(plan.shortest, plan.gpu_seconds / count) / 3600,
                "gpus_at_work": done.busy,
            }
            for count in gpus
        ],
        "enough_gpus": plan.enough,
        "critical_path": [{"task": plan.dag[n].name, "hours": plan.seconds[n] / 3600} for n in plan.critical_path],
        "transfer": _transfer(plan.transfer),
        "cost": {
            "currency": plan.machines.prices.currency,
            "prices": plan.machines.prices.note,
            **asdict(cost),
            "total": cost.total,
            "total_spot": cost.total_spot,
        },
        "refreshes": dict(zip(("least", "expected", "most"), plan.refresh_range(), strict=True)),
        "warnings": plan.warnings,
        "tasks": [_task(estimate) for estimate in plan.tasks],
        "measured_run": [asdict(step) for step in plan.compared],
    }


def _step(found: Sequence[TaskEstimate]) -> dict[str, Any]:
    seconds = [estimate.seconds for estimate in found]
    return {
        "pods": len(found),
        "gpu_hours": sum(e.seconds * e.gpus for e in found) / 3600,
        "pod_seconds": {"least": min(seconds), "most": max(seconds), "sum": sum(seconds)},
        "training_passes": sum(p.student for e in found for p in e.passes),
        "forward_passes": sum(p.forward for e in found for p in e.passes),
        **_transfer(sum((estimate.transfer for estimate in found), Transfer())),
        "basis": basis_of(found),
    }


def _task(estimate: TaskEstimate) -> dict[str, Any]:
    return {
        **asdict(estimate.task),
        "seconds": estimate.seconds,
        "start_seconds": estimate.start,
        "compute_seconds": estimate.compute.value,
        "reading_seconds": estimate.reading,
        "basis": estimate.compute.basis,
        "passes": [asdict(passes) for passes in estimate.passes],
    }


def _transfer(transfer: Transfer) -> dict[str, int]:
    return {
        "read_bytes": round(transfer.read),
        "written_bytes": round(transfer.written),
        "deleted_bytes": round(transfer.deleted),
        "gets": round(transfer.gets),
        "puts": round(transfer.puts),
    }


def _inverse(seconds: float) -> float | None:
    return 1.0 / seconds if seconds else None
