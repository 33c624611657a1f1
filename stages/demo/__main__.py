"""Build the page and serve it on loopback: `make demo`."""

import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from stages.demo.building import DemoError, build
from stages.device.running import FolderError

PORT = 8000
PAGES = Path("reports/demo")


class Handler(SimpleHTTPRequestHandler):
    """Files with the types that browsers insist on, and no log."""

    extensions_map = SimpleHTTPRequestHandler.extensions_map | {".mjs": "text/javascript", ".wasm": "application/wasm"}

    def log_message(self, *_: object) -> None:
        """Nothing."""


def server(folder: Path, port: int) -> ThreadingHTTPServer:
    """A server of a folder on loopback; at another port where this one is taken."""
    handler = partial(Handler, directory=str(folder))
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError:
        return ThreadingHTTPServer(("127.0.0.1", 0), handler)


def main() -> None:
    """Build, then serve until interrupted."""
    try:
        sizes = build(Path("data/export"), PAGES)
    except (DemoError, FolderError) as error:
        sys.exit(str(error))
    for name, size in sizes.items():
        print(f"{PAGES / name}: {size / 1e6:.1f} MB", file=sys.stderr)
    with server(PAGES, PORT) as running:
        print(f"http://127.0.0.1:{running.server_port} (Ctrl-C ends it)")
        threading.Thread(target=running.serve_forever, daemon=True).start()
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            running.shutdown()


if __name__ == "__main__":
    main()
