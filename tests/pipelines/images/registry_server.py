"""An image registry on loopback, and a record of images in it. For tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from pipelines.images.record import ImageRecord, write_images

DIGEST = f"sha256:{'0123456789abcdef' * 4}"


@contextmanager
def serve_registry() -> Iterator[tuple[str, dict[str, int]]]:
    """Its HOST:PORT, and the status of its answers by repository."""
    statuses: dict[str, int] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            name = self.path.removeprefix("/v2/").partition("/manifests/")[0]
            self.send_response(statuses[name] if self.path.endswith(DIGEST) else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}", statuses
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def record_at(host: str, folder: Path) -> Path:
    """Writes a record of both images at a registry."""
    references = {target: f"{host}/cellsignal-{target}@{DIGEST}" for target in ("cpu", "gpu")}
    path = folder / "images.json"
    write_images(ImageRecord(schema=2, version="0.1.0", commit="abc", references=references), path)
    return path
