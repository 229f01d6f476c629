"""A component as a task on a cluster starts it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from components.core.storage.arrays import read_logits
from tests.components.core.manifests import manifest
from tests.components.ensemble.test_ensemble_step import fold_directory


def test_runs_the_step_on_the_files_that_kubeflow_gives(tmp_path: Path):
    (tmp_path / "screen").write_text(manifest([]).model_dump_json())
    folds = [fold_directory(tmp_path / f"fold{fold}", fold, [f"A_{fold}_A"]) for fold in range(2)]

    def artifacts(*paths: Path) -> dict[str, list[dict[str, object]]]:
        kind = {"schemaTitle": "system.Dataset"}
        return {"artifacts": [{"name": path.name, "uri": str(path), "type": kind, "metadata": {}} for path in paths]}

    given = {
        "inputs": {"artifacts": {"screen": artifacts(tmp_path / "screen"), "logits": artifacts(*folds)}},
        "outputs": {
            "artifacts": {"averaged": artifacts(tmp_path / "averaged")},
            "outputFile": str(tmp_path / "outputs.json"),
        },
    }
    command = [sys.executable, "-m", "components.kfp_task", "--component", "components.ensemble.component"]
    command += ["--executor_input", json.dumps(given), "--function_to_execute", "ensemble"]
    subprocess.run(command, check=True, cwd=tmp_path)
    assert read_logits(tmp_path / "averaged").wells["oof"].ids_W == ("A_0_A", "A_1_A")
