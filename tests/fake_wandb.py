"""Servers on loopback that replace W&B's: one that accepts and stores runs, and some that fail."""

import gzip
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LAST_PAGE = {"endCursor": None, "hasNextPage": False}


class FakeWandb:
    """Takes runs as W&B's server does, as far as the client asks it to.

    `hangs` makes it accept requests without answering: "no", "runs" (all but the first question whether it is there) or
    "all".
    """

    def __init__(self) -> None:
        self.lines: dict[str, dict[int, str]] = {}
        self.overwritten: list[int] = []
        self.uploaded: list[str] = []
        self.name = ""
        self.config = "{}"
        self.report: dict[str, Any] = {}
        self.hangs = "no"
        self.status = 200
        self.stopped = threading.Event()

    def history(self) -> list[dict[str, Any]]:
        return [json.loads(line) for _, line in sorted(self.lines.get("wandb-history.jsonl", {}).items())]

    def take_lines(self, files: dict[str, Any]) -> None:
        for name, chunk in files.items():
            have = self.lines.setdefault(name, {})
            for number, line in enumerate(chunk["content"], chunk["offset"]):
                if name == "wandb-history.jsonl" and number in have:
                    self.overwritten.append(number)
                have[number] = line

    def answer(self, query: dict[str, Any], url: str) -> dict[str, Any] | None:
        """The data of a query; None for what this server does not have, such as artifacts."""
        variables = query.get("variables") or {}
        named = re.search(r"(?:query|mutation)\s+(\w+)", query["query"])
        match query.get("operationName") or (named and named[1]):
            case "RunResumeStatus" if self.history():
                tail = json.dumps([json.dumps(self.history()[-1])])
                bucket = {
                    "id": "b", "name": variables["name"], "displayName": "run", "summaryMetrics": "{}", "config": "{}",
                    "wandbConfig": "{}", "tags": [], "logLineCount": 0, "eventsLineCount": 0, "eventsTail": "[]",
                    "historyLineCount": len(self.history()), "historyTail": tail,
                }  # fmt: skip
                return {"model": {"id": "m", "name": "p", "entity": {"id": "e", "name": "me"}, "bucket": bucket}}
            case "RunResumeStatus":
                return {"model": None}
            case "UpsertBucket":
                self.config, self.name = (
                    variables.get("config") or self.config,
                    variables.get("displayName") or self.name,
                )
                project = {"id": "p", "name": variables["project"], "entity": {"id": "e", "name": "me"}}
                bucket = {
                    "id": "b", "name": variables["name"], "displayName": "run", "config": "{}", "project": project,
                    "historyLineCount": len(self.history()),
                }  # fmt: skip
                return {"upsertBucket": {"bucket": bucket, "inserted": True}}
            case "CreateRunFiles":
                files = [{"name": name, "uploadUrl": f"{url}/put/{name}"} for name in variables["files"]]
                return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
            case "Viewer":
                viewer = {"id": "u", "entity": "me", "username": "me", "email": "me@localhost", "flags": "{}"}
                return {"viewer": viewer | {"admin": False, "teams": {"edges": []}, "apiKeys": {"edges": []}}}
            case "GetDefaultEntity":
                return {"viewer": {"id": "u", "entity": "me"}}
            case "ProjectInternalId":
                return {"project": {"internalId": "UHJvamVjdEludGVybmFsSWQ6MQ=="}}
            case "GetProjects":
                node = {"id": "p", "internalId": "1", "name": "graft", "entityName": "me", "user": None}
                node |= {"createdAt": "2026-01-01T00:00:00", "isBenchmark": False}
                return {"models": {"edges": [{"cursor": "c", "node": node}], "pageInfo": LAST_PAGE}}
            case "upsertView":
                self.report = json.loads(variables["spec"])
                view = {
                    "id": "Vmlldzox",
                    "type": "runs",
                    "name": "n",
                    "displayName": "d",
                    "description": "",
                    "spec": "{}",
                }
                view |= {
                    "project": {"id": "p", "name": "graft", "entityName": "me"},
                    "updatedAt": "2026-01-01T00:00:00",
                }
                return {"upsertView": {"view": view | {"spec": '{"blocks": []}'}, "inserted": True}}
            case "Runs":
                runs = {"edges": [{"cursor": "c", "node": self.run()}], "pageInfo": LAST_PAGE}
                return {"project": {"id": "p", "internalId": "1", "runCount": 1, "readOnly": False, "runs": runs}}
            case "RunHistoryKeys":
                return {"project": {"run": {"historyKeys": {"lastStep": self.history()[-1]["_step"], "keys": {}}}}}
            case "RunParquetHistory":
                return {"project": {"run": {"parquetHistory": {"parquetUrls": [], "liveData": []}}}}
            case "HistoryPage":
                return {"project": {"run": {"history": [json.dumps(row) for row in self.history()]}}}
        return None

    def run(self) -> dict[str, Any]:
        """The run in the form of W&B's API."""
        summary = self.lines["wandb-summary.json"]
        return {
            "id": "b", "name": "id", "displayName": self.name, "state": "finished", "tags": [], "sweepName": None,
            "config": self.config, "group": None, "jobType": None, "commit": None, "readOnly": False, "notes": "",
            "createdAt": "2026-01-01T00:00:00", "heartbeatAt": "2026-01-01T00:00:00", "description": "",
            "systemMetrics": "{}", "summaryMetrics": summary[max(summary)], "historyLineCount": len(self.history()),
            "user": {"name": "me", "username": "me"}, "projectId": "1", "historyKeys": {"lastStep": 0, "keys": {}},
        }  # fmt: skip


@contextmanager
def serving(fake: FakeWandb) -> Iterator[str]:
    """The address it listens at."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            if fake.hangs == "all" or (fake.hangs == "runs" and b"__typename}" not in body):
                fake.stopped.wait()
                return
            answer: dict[str, Any] = {}
            if self.path == "/graphql":
                data = fake.answer(json.loads(body), address)
                answer = {"errors": [{"message": "there is no such thing"}]} if data is None else {"data": data}
            elif self.path.endswith("/file_stream"):
                fake.take_lines(json.loads(body).get("files") or {})
            elif self.path.startswith("/put/"):
                fake.uploaded.append(self.path.removeprefix("/put/"))
            text = json.dumps(answer).encode()
            self.send_response(fake.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_PUT = do_POST

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:  # clients that gave up
            pass

    server = Server(("127.0.0.1", 0), Handler)
    address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield address
    finally:
        fake.stopped.set()
        server.shutdown()
        server.server_close()


def closed_port() -> int:
    """A port that nothing listens at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
