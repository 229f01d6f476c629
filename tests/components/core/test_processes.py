"""How many cores a process may use, and the end of a pool of worker processes."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from pathlib import Path

import pytest

from components.core.processes import cpu_limit


def cgroup(folder: Path, **files: str) -> Path:
    for name, content in files.items():
        file = folder / name.replace("__", "/").replace("_max", ".max").replace("cfs_", "cpu.cfs_")
        file.parent.mkdir(exist_ok=True)
        file.write_text(content)
    return folder


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"cpu_max": "250000 100000\n"}, 2.5),
        ({"cpu_max": "max 100000\n"}, math.inf),
        ({"cpu__cfs_quota_us": "50000\n", "cpu__cfs_period_us": "100000\n"}, 0.5),
        ({"cpu__cfs_quota_us": "-1\n", "cpu__cfs_period_us": "100000\n"}, math.inf),
        ({"cpu_max": "nonsense"}, math.inf),
    ],
)
def test_the_limit_of_either_version_of_cgroups(tmp_path: Path, files: dict[str, str], limit: float):
    assert cpu_limit(cgroup(tmp_path, **files)) == limit


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_a_child_dies_with_a_parent_that_is_killed():
    program = (
        "import os, signal, subprocess\n"
        "from components.core.processes import dies_with_parent\n"
        "child = subprocess.Popen(['sleep', '60'], preexec_fn=dies_with_parent(signal.SIGKILL))\n"
        "print(child.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    output = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, timeout=60).stdout
    child = Path(f"/proc/{int(output)}/status")
    deadline = time.monotonic() + 10
    while child.exists() and "(zombie)" not in child.read_text():
        assert time.monotonic() < deadline, "the child still runs"
        time.sleep(0.05)


def test_worker_processes_end_by_sigterm_even_if_their_parent_ignores_it():
    """A pool that lost a worker ends the others by SIGTERM and joins them; Ctrl-C is left to the parent."""
    # In a process of its own: its server of workers would pass the ignored signal on to the pools of other tests.
    program = (
        "import signal\n"
        "from components.core.processes import worker_processes\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "with worker_processes(1, []) as pool:\n"
        "    for each in (signal.SIGINT, signal.SIGTERM):\n"
        "        print(pool.submit(signal.getsignal, each).result(20).name)"
    )
    output = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, timeout=60, check=True).stdout
    assert output.split() == [b"SIG_IGN", b"SIG_DFL"]


def test_worker_processes_end_without_a_task():
    program = "import time\nfrom components.core.processes import worker_processes\nwith worker_processes(2, []): time.sleep(1)"
    subprocess.run([sys.executable, "-c", program], timeout=60, check=True)
