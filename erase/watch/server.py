"""The server of the page that shows a training: `erase.watch.serving` starts it.

It answers at a socket that it inherits, gets what it shows as a line of JSON on its input, and ends
when its input does. It serves the page, numbers of the runs and their sample pictures: the address
of a request is compared with these, and is never a path.
"""

import json
import re
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import cast

from erase.watch.state import Page

STATE = re.compile(r"/state/(\d{1,6})\.json")
PICTURE = re.compile(r"/samples/(\d{1,6})/(\d{1,9})/(\d)\.png")
FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
# Seconds that a request may take to arrive.
PATIENCE = 10


class Server(ThreadingHTTPServer):
    """Answers requests for a page at a socket that listens already.

    Attributes:
        page: what it shows.
        lock: held while the page is read.
    """

    daemon_threads = True

    def __init__(self, listening: socket.socket, page: Page) -> None:
        super().__init__(listening.getsockname(), Handler, bind_and_activate=False)
        self.socket.close()
        self.socket, self.page, self.lock = listening, page, threading.Lock()
        port = listening.getsockname()[1]
        # Another site's name that leads to this computer is refused.
        self.hosts = {f"{name}:{port}" for name in ("127.0.0.1", "localhost")}

    def answer(self, path: str) -> tuple[str, bytes] | None:
        """The type and content at a path; None if there is nothing."""
        if path in FILES:
            name, kind = FILES[path]
            return kind, resources.files("erase.watch").joinpath(name).read_bytes()
        with self.lock:
            if (match := STATE.fullmatch(path)) and int(match[1]) < len(self.page.runs):
                content = json.dumps(self.page.state(int(match[1])), allow_nan=False)
                return "application/json", content.encode()
            if match := PICTURE.fullmatch(path):
                picture = self.page.picture(*map(int, match.groups()))
                return None if picture is None else ("image/png", picture)
        return None


class Handler(BaseHTTPRequestHandler):
    """Answers a request."""

    timeout = PATIENCE
    server_version, sys_version = "watch", ""

    def do_GET(self) -> None:
        """Answer with what is at the path."""
        server = cast(Server, self.server)
        if self.headers.get("Host") not in server.hosts:
            self.send_error(403)
        elif (found := server.answer(self.path.partition("?")[0])) is None:
            self.send_error(404)
        else:
            kind, content = found
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    def end_headers(self) -> None:
        """Add the headers of every answer."""
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing: the terminal is the training's."""


def serve() -> None:
    """Serve until the input ends."""
    listening = socket.socket(fileno=int(sys.argv[1]))
    job = json.loads(sys.stdin.buffer.readline() or "null")
    # The training has ended already.
    if job is None:
        return
    server = Server(listening, Page.of(Path(job["workdir"]), job["names"]))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.buffer.read()
