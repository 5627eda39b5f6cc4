"""A web server on this machine for tests that fetch: files, with all that can go wrong; and
enough of the Hub's API.
"""

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


class Web:
    """Serves `files`, by path. What it does wrong is set by a test; lists are of the next
    answers, one each.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []  # path and Range of each request for a file
        self.tokens: list[tuple[str, str]] = []  # path and Authorization
        self.honours_range = True
        self.names_version = True  # by an ETag
        self.says_length = True
        self.chunked = False
        self.weak = False
        self.cut_after: list[int] = []  # bytes of the body, then the connection ends
        self.statuses: list[tuple[int, dict[str, str]]] = []
        self.before: Callable[[str], None] = lambda path: None
        self.datasets: dict[str, dict[str, bytes]] = {}
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def add(self, path: str, content: bytes) -> str:
        self.files[path] = content
        return self.url + path

    def add_dataset(self, repo: str, files: dict[str, bytes]) -> None:
        """A data set of the Hub. Its files of 100 bytes or more lie elsewhere, as large ones do
        there.
        """
        self.datasets[repo] = files
        self.files |= {
            f"/cdn/{hashlib.sha256(content).hexdigest()}": content for content in files.values()
        }


COMMIT = "c0ffee" * 6 + "c0ff"
PAGE = 2  # entries of a listing that come at once


def tag_of(content: bytes) -> str:
    return f'"{hashlib.md5(content).hexdigest()}"'


@contextmanager
def serving() -> Iterator[Web]:
    web = Web()
    thread = threading.Thread(
        target=web.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    )
    thread.start()
    yield web
    web.server.shutdown()
    web.server.server_close()


def _handler(web: Web) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            web.tokens.append((path, self.headers.get("Authorization", "")))
            if path.startswith("/api/datasets/"):
                self.dataset(path.removeprefix("/api/datasets/"))
            elif path.startswith("/datasets/"):
                self.resolve(path)
            else:
                self.file(path)

        do_HEAD = do_GET

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            owner, name, *_ = self.path.removeprefix("/api/datasets/").split("/")
            files = web.datasets[f"{owner}/{name}"]
            self.json([_entry(path, files[path]) for path in asked["paths"] if path in files])

        def file(self, path: str) -> None:
            ranged = self.headers.get("Range", "")
            web.asked.append((path, ranged))
            web.before(path)
            if web.statuses:
                status, headers = web.statuses.pop(0)
                return self.answer(status, b"", headers)
            if path not in web.files:
                return self.answer(404, b"none")
            content, status, headers = web.files[path], 200, {}
            if ranged and web.honours_range:
                found = re.fullmatch(r"bytes=(\d+)-(\d*)", ranged)
                assert found
                first = int(found[1])
                last = min(int(found[2] or len(content)), len(content) - 1)
                if first >= len(content):
                    return self.answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
                headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
                status = 206
                body = content[first : last + 1]
            else:
                body = content
            if web.names_version:
                headers["ETag"] = ("W/" if web.weak else "") + tag_of(content)
            self.answer(status, body, headers, web.cut_after.pop(0) if web.cut_after else None)

        def resolve(self, path: str) -> None:
            owner, name, _, commit, *rest = path.removeprefix("/datasets/").split("/")
            content = web.datasets.get(f"{owner}/{name}", {}).get("/".join(rest))
            if content is None:
                return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            place = f"/cdn/{hashlib.sha256(content).hexdigest()}"
            if len(content) < 100:
                return self.file(place)
            self.answer(302, b"", {"Location": f"{web.url}{place}", "X-Repo-Commit": commit})

        def dataset(self, rest: str) -> None:
            owner, name, *words = rest.split("/")
            files = web.datasets.get(f"{owner}/{name}")
            if files is None:
                return self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
            if not words or words[0] == "revision":
                revision = words[1] if words[1:] else "main"
                if revision != "main" and not re.fullmatch("[0-9a-f]{40}", revision):
                    return self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
                commit = COMMIT if revision == "main" else revision
                return self.json({"_id": "1", "id": f"{owner}/{name}", "sha": commit})
            assert words[0] == "tree", words
            assert re.fullmatch("[0-9a-f]{40}", words[1]), words
            folder = "/".join(words[2:])
            names = [
                path for path in sorted(files) if path.startswith(f"{folder}/" if folder else "")
            ]
            if not names:
                return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            query = dict(
                part.split("=") for part in urlsplit(self.path).query.split("&") if "=" in part
            )
            first = int(query.get("cursor", 0))
            headers = {}
            if first + PAGE < len(names):
                place = f"{web.url}{urlsplit(self.path).path}?recursive=true&cursor={first + PAGE}"
                headers["Link"] = f'<{place}>; rel="next"'
            page: list[Any] = [_entry(path, files[path]) for path in names[first : first + PAGE]]
            self.json([*page, {"type": "directory", "path": "a-folder", "oid": "0"}], headers)

        def json(self, content: Any, headers: dict[str, str] | None = None) -> None:
            self.answer(
                200,
                json.dumps(content).encode(),
                {"Content-Type": "application/json", **(headers or {})},
            )

        def answer(
            self,
            status: int,
            body: bytes,
            headers: dict[str, str] | None = None,
            cut_after: int | None = None,
        ) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            file = status in (200, 206) and not self.path.startswith("/api/")
            if file and web.chunked:
                self.send_header("Transfer-Encoding", "chunked")
            elif not file or web.says_length:
                self.send_header("Content-Length", str(len(body)))
            else:
                cut_after = len(body) if cut_after is None else cut_after
            self.end_headers()
            if self.command == "HEAD":
                return
            sent = body[:cut_after]
            if file and web.chunked:
                self.wfile.write(f"{len(body):x}\r\n".encode() + sent)
                if cut_after is None:
                    self.wfile.write(b"\r\n0\r\n\r\n")
            else:
                self.wfile.write(sent)
            self.close_connection = cut_after is not None

    return Handler


def _entry(path: str, content: bytes) -> dict[str, Any]:
    oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry = {"type": "file", "path": path, "size": len(content), "oid": oid}
    if len(content) >= 100:
        entry["lfs"] = {
            "oid": hashlib.sha256(content).hexdigest(),
            "size": len(content),
            "pointerSize": 130,
        }
    return entry
