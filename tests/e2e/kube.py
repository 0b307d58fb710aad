"""`kubectl` as a user runs it, with JSON out and waiting for conditions with a deadline."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import yaml

Object = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Kubectl:
    """`kubectl` with the environment of the cluster and one namespace."""

    environment: Mapping[str, str]
    namespace: str

    def run(self, *arguments: str, check: bool = True, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run ``kubectl`` and return what it printed."""
        done = subprocess.run(
            ["kubectl", "--namespace", self.namespace, *arguments],
            env=dict(self.environment),
            input=stdin,
            text=True,
            capture_output=True,
            check=False,
            timeout=120,
        )
        if check and done.returncode:
            raise AssertionError(f"kubectl {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def get(self, kind: str, name: str) -> Object | None:
        """Return the object, or None if there is none."""
        done = self.run("get", kind, name, "--output", "json", "--ignore-not-found")
        return json.loads(done.stdout) if done.stdout.strip() else None

    def list(self, kind: str, selector: str = "") -> list[Object]:
        """Return all objects of a kind that the label selector matches."""
        done = self.run("get", kind, "--selector", selector, "--output", "json")
        items: list[Object] = json.loads(done.stdout)["items"]
        return items

    def apply(self, *objects: Object) -> None:
        """Apply objects as ``kubectl apply -f -`` does."""
        self.run("apply", "-f", "-", stdin=yaml.safe_dump_all(objects))

    def patch(self, kind: str, name: str, *, merge: Object) -> None:
        """Merge a patch into an object."""
        self.run("patch", kind, name, "--type=merge", "--patch", json.dumps(merge))

    def evict(self, pod: str) -> None:
        """Evict a pod through the Eviction API, as a node drain does."""
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": self.namespace}}
        path = f"/api/v1/namespaces/{self.namespace}/pods/{pod}/eviction"
        self.run("create", "--raw", path, "-f", "-", stdin=json.dumps(body))


def until(what: str, condition: Callable[[], T | None], *, timeout: float, pause: float = 0.2) -> T:
    """Return the condition's first true value; fail when there is none in time."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not so after {timeout:.0f} s: {what}")
        time.sleep(pause)


@dataclass
class PodWatch:
    """Follows the pods of a selector and remembers the most that were alive at once."""

    kubectl: Kubectl
    selector: str
    most_alive: int = 0
    seen: set[str] = field(default_factory=set)
    _process: subprocess.Popen[str] | None = None
    _thread: threading.Thread | None = None

    def __enter__(self) -> PodWatch:
        command = ["kubectl", "-n", self.kubectl.namespace, "get", "pods", "-l", self.selector, "-o", "json"]
        self._process = subprocess.Popen(
            [*command, "--watch", "--output-watch-events"],
            env=dict(self.kubectl.environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process
        assert self._thread
        self._process.terminate()
        self._process.wait()
        self._thread.join()
        assert self._process.stdout
        self._process.stdout.close()

    def _follow(self) -> None:
        assert self._process
        assert self._process.stdout
        alive: set[str] = set()
        text = ""
        decoder = json.JSONDecoder()
        for line in self._process.stdout:
            text += line
            try:
                event, end = decoder.raw_decode(text)
            except json.JSONDecodeError:
                continue
            text = text[end:].lstrip()
            name, phase = event["object"]["metadata"]["name"], event["object"]["status"]["phase"]
            self.seen.add(name)
            if event["type"] == "DELETED" or phase in {"Succeeded", "Failed"}:
                alive.discard(name)
            else:
                alive.add(name)
            self.most_alive = max(self.most_alive, len(alive))
