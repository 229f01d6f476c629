"""A task on a cluster: Kubeflow's launcher starts `python -m components.kfp_task --component MODULE ...`.

KFP's own command would carry the component's source into every task, several times; the image has it already.
"""

from __future__ import annotations

import argparse
import json
import os
from importlib import import_module


def main() -> None:
    """Calls a component with the inputs and outputs that KFP gives."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--component", help="module of the function")
    parser.add_argument("--executor_input")
    parser.add_argument("--function_to_execute")
    arguments = parser.parse_args()
    os.environ["_KFP_RUNTIME"] = "true"  # kfp then leaves its compiler and its client out
    from kfp.dsl.executor import Executor

    component = getattr(import_module(arguments.component), arguments.function_to_execute)
    Executor(executor_input=json.loads(arguments.executor_input), function_to_execute=component).execute()


if __name__ == "__main__":
    main()
