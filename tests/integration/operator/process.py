"""The operator as a process of its own, as it runs in a cluster."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Self

from dev.cluster.ports import free_ports
from dev.cluster.waiting import wait_for

READY = 90.0


class OperatorProcess:
    """`python -m darkroom_operator` for the time of a `with` block."""

    def __init__(self, kubeconfig: Path, log: Path, *flags: str, namespace: str | None = None) -> None:
        self.kubeconfig = kubeconfig
        self.log = log
        self.port = free_ports(1)[0]
        defaults = {
            "--trainer-image": "registry.example.com/trainer:1",
            "--listen": f"127.0.0.1:{self.port}",
            "--poll-interval": "0.2",
            "--progress-interval": "0.5",
            "--log-format": "text",
        }
        if namespace:
            defaults["--namespace"] = namespace
        self.flags = [part for flag, value in defaults.items() for part in (flag, value)] + list(flags)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("DARKROOM_")}
        environment["KUBECONFIG"] = str(self.kubeconfig)
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "darkroom_operator", *self.flags]
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def is_ready(self) -> bool:
        return self.read("/readyz") == "ok\n"

    def read(self, path: str) -> str | None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                text: str = answer.read().decode()
                return text
        except (urllib.error.URLError, OSError):
            return None

    def polls(self, result: str) -> float:
        """Return how many polls of pods ended with a result."""
        found = re.search(
            rf'^darkroom_polls_total{{result="{result}"}} (\S+)$', self.read("/metrics") or "", re.MULTILINE
        )
        return float(found[1]) if found else 0.0

    def kill(self) -> None:
        assert self.process
        self.process.kill()
        self.process.wait(30)

    def stop(self) -> int:
        """Ask it to stop, and return its exit code."""
        assert self.process
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def __enter__(self) -> Self:
        self.start()
        return self

    def wait_ready(self) -> None:
        wait_for(self.is_ready, "the operator is ready", timeout=READY, pause=0.05, check=self.check)

    def check(self) -> None:
        assert self.process
        assert self.process.poll() is None, f"the operator runs:\n{self.log.read_text()[-3000:]}"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process and self.process.poll() is None:
            self.kill()
        if error is not None:
            sys.stderr.write(f"--- {self.log}\n{self.log.read_text()[-6000:]}\n")
