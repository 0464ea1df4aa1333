"""A server that answers like the Hugging Face hub when a repository is downloaded."""

import json
import threading
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SHA = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serve one folder as the repository "owner/tiny", and as "owner/gated" if `token` is sent.

    Attributes:
        url: address of the server.
        fetched: names of the files whose contents were requested.
    """

    def __init__(self, folder: Path, token: str):
        self.fetched: list[str] = []
        hub = self
        files = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.do_GET()

            def do_GET(self):
                path = self.path.partition("?")[0]
                parts = path.removeprefix("/api/models").strip("/").split("/", 4)
                repo = "/".join(parts[:2])
                known = repo in ("owner/tiny", "owner/gated")
                allowed = self.headers.get("Authorization") == f"Bearer {token}"
                if not known:
                    self.answer(401, {"X-Error-Code": "RepoNotFound"})
                elif path.startswith("/api/") and parts[2] == "revision":
                    self.answer(200, body={"id": repo, "sha": SHA, "siblings": []})
                elif path.startswith("/api/"):
                    entries = [
                        {"type": "file", "path": name, "size": file.stat().st_size, "oid": SHA}
                        for name, file in files.items()
                    ]
                    self.answer(200, body=entries)
                elif repo == "owner/gated" and not allowed:
                    self.answer(403, {"X-Error-Code": "GatedRepo"})
                else:
                    data = files[parts[4]].read_bytes()
                    if self.command == "GET":
                        hub.fetched.append(parts[4])
                    self.answer(
                        200, {"ETag": f'"{sha1(data).hexdigest()}"', "X-Repo-Commit": SHA}, data
                    )

            def answer(self, status, headers=(), body=b""):
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                for name, value in {**dict(headers), "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(data)

            def log_message(self, format, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
