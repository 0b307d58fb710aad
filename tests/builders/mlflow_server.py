"""The part of MLflow's REST API 2.0 that the trainer speaks, on a free port, with the limits of a real server."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Body = dict[str, Any]


@dataclass
class MLflowServer:
    """What it holds, and how it is to behave."""

    url: str = ""
    experiments: dict[str, str] = field(default_factory=dict)
    """Names to ids."""
    runs: dict[str, Body] = field(default_factory=dict)
    metrics: dict[str, list[Body]] = field(default_factory=dict)
    """By run, in the order of their arrival."""
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """Paths with their Authorization."""
    status: int = 200
    """Other than 200: the answer to everything."""

    def values(self, key: str) -> dict[int, float]:
        """Return the only run's values of a metric by step, each of which was sent once."""
        (found,) = self.metrics.values()
        values = [(it["step"], it["value"]) for it in found if it["key"] == key]
        assert len({step for step, _ in values}) == len(values)
        return dict(values)

    def answer(self, path: str, body: Body) -> tuple[int, Body]:
        """Return status and content."""
        if self.status != 200:
            return self.status, {"error_code": "X", "message": "not now"}
        found: tuple[int, Body] = getattr(self, "_" + path.replace("/", "_").replace("-", "_"))(body)
        return found

    def _experiments_get_by_name(self, body: Body) -> tuple[int, Body]:
        known = self.experiments.get(body["experiment_name"])
        if known is None:
            return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "Could not find experiment"}
        return 200, {"experiment": {"experiment_id": known}}

    def _experiments_create(self, body: Body) -> tuple[int, Body]:
        self.experiments[body["name"]] = number = str(len(self.experiments) + 1)
        return 200, {"experiment_id": number}

    def _runs_search(self, body: Body) -> tuple[int, Body]:
        (experiment,) = body["experiment_ids"]
        name, _, value = body["filter"].removeprefix("tags.").partition(" = ")
        tag = {"key": name.strip("`"), "value": value.strip("'")}
        return 200, {
            "runs": [
                {"info": run["info"], "data": {"metrics": self._latest(number)}}
                for number, run in self.runs.items()
                if run["experiment_id"] == experiment and tag in run["tags"]
            ]
        }

    def _latest(self, run: str) -> list[Body]:
        return list({it["key"]: it for it in sorted(self.metrics[run], key=lambda it: int(it["step"]))}.values())

    def _runs_create(self, body: Body) -> tuple[int, Body]:
        number = f"run-{len(self.runs) + 1}"
        info = {"run_id": number, "run_name": body["run_name"], "status": "RUNNING"}
        self.runs[number] = {"info": info, "params": {}, **body}
        self.metrics[number] = []
        return 200, {"run": {"info": info}}

    def _runs_update(self, body: Body) -> tuple[int, Body]:
        self.runs[body["run_id"]]["info"] |= {key: value for key, value in body.items() if key != "run_id"}
        return 200, {}

    def _runs_log_batch(self, body: Body) -> tuple[int, Body]:
        metrics, params = body.get("metrics", []), body.get("params", [])
        if len(metrics) > 1000 or len(params) > 100 or any(len(it["value"]) > 500 for it in params):
            return 400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "too much"}
        self.metrics[body["run_id"]] += metrics
        self.runs[body["run_id"]]["params"] |= {it["key"]: it["value"] for it in params}
        return 200, {}


@contextmanager
def mlflow_server(port: int = 0) -> Iterator[MLflowServer]:
    """Serve until the block ends."""
    state = MLflowServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked = urlsplit(self.path)
            self._reply(asked.path, {name: values[0] for name, values in parse_qs(asked.query).items()})

        def do_POST(self) -> None:
            self._reply(self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _reply(self, path: str, body: Body) -> None:
            root, _, name = path.partition("/api/2.0/mlflow/")
            state.asked.append((name, self.headers.get("Authorization")))
            status, content = (404, {}) if root else state.answer(name, body)
            data = b"<html>Not Found" if root else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Stay silent."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
