"""MLflow by its REST API 2.0, with the HTTP client that the store's brings along.

MLflow's own package would add 90 MB to the image and 25 packages, waits for every request in the training's thread, and
begins another run after each restart. Format: https://mlflow.org/docs/latest/api_reference/rest-api.html
"""

from __future__ import annotations

import base64
import json
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import urllib3

from darkroom_trainer.tracking.feed import About, Point, TrackerAwayError, TrackerRefusedError

RUN_TAG: Final = "darkroom.run"
"""By which a later attempt finds the run."""
STATUSES: Final = {"Succeeded": "FINISHED", "Failed": "FAILED", "Preempted": "KILLED"}
MAXIMUM_METRICS: Final = 1000
MAXIMUM_PARAMETERS: Final = 100
"""In one request."""
MAXIMUM_VALUE: Final = 500
"""Characters of a parameter; newer servers take 6000."""
_TIMEOUT: Final = urllib3.Timeout(connect=5, read=20)
_LATER: Final = {408, 425, 429, *range(500, 600)}
"""HTTP statuses after which the same request may succeed."""
_Answer = dict[str, Any]


@dataclass(frozen=True)
class Server:
    """Where and who; every request has a deadline."""

    url: str
    headers: Mapping[str, str]
    pool: urllib3.PoolManager

    def post(self, path: str, body: _Answer) -> _Answer:
        """Send a request and return the answer.

        Raises:
            TrackerAwayError: There is none, or it says to come again.
            TrackerRefusedError: It says no.
        """
        return self._answer(path, "POST", body=json.dumps(body), headers={"Content-Type": "application/json"})

    def get(self, path: str, **fields: str) -> _Answer:
        """Ask for something; raises as `post` does."""
        return self._answer(path, "GET", fields=fields)

    def _answer(self, path: str, method: str, **arguments: Any) -> _Answer:
        headers = {**self.headers, **arguments.pop("headers", {})}
        url = f"{self.url.rstrip('/')}/api/2.0/mlflow/{path}"
        try:
            response = self.pool.request(method, url, headers=headers, timeout=_TIMEOUT, retries=False, **arguments)
            if response.status in _LATER:
                raise TrackerAwayError(f"{path}: HTTP {response.status}")
            answer: _Answer = json.loads(response.data)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise TrackerAwayError(f"{path}: {error}") from error
        except ValueError as error:
            what = f"HTTP {response.status} without JSON; is this MLflow's address?"
            raise TrackerRefusedError(f"{path}: {what}") from error
        if response.status >= 300:
            raise _RefusalError(path, response.status, answer)
        return answer


class _RefusalError(TrackerRefusedError):
    def __init__(self, path: str, status: int, answer: _Answer) -> None:
        hint = "; look at the Secret in credentials" if status in {401, 403} else ""
        super().__init__(f"{path}: HTTP {status} {answer.get('message', '')}{hint}")
        self.code = answer.get("error_code")


def connect(url: str, environ: Mapping[str, str]) -> Server:
    """Return a server with the credentials and certificates of the environment."""
    context = ssl.create_default_context()
    if bundle := environ.get("AWS_CA_BUNDLE"):  # the run's private authority, whatever it vouches for
        context.load_verify_locations(bundle)
    headers = {"User-Agent": "darkroom"}
    user, password = environ.get("MLFLOW_TRACKING_USERNAME"), environ.get("MLFLOW_TRACKING_PASSWORD")
    if token := environ.get("MLFLOW_TRACKING_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    elif user and password:
        headers["Authorization"] = f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"
    return Server(url, headers, urllib3.PoolManager(ssl_context=context, maxsize=1))


class MLflowTracker:
    """One run of ours as one run there, through all attempts."""

    def __init__(
        self, server: Server, about: About, *, experiment: str, clock: Callable[[], float] = time.time
    ) -> None:
        self.name = f"MLflow at {server.url}"
        self._server, self._about, self._experiment, self._clock = server, about, experiment, clock
        self._id = ""
        self._known: dict[str, int] = {}
        """The last step of each metric that is there already."""

    def begin(self) -> None:
        """Find the run of an earlier attempt, or make one with its parameters."""
        experiment = self._experiment_id()
        query = {"experiment_ids": [experiment], "filter": f"tags.`{RUN_TAG}` = '{self._about.run}'", "max_results": 1}
        found = self._server.post("runs/search", query).get("runs", [])
        if found:
            self._id = found[0]["info"]["run_id"]
            self._known = {it["key"]: int(it.get("step", 0)) for it in found[0].get("data", {}).get("metrics", [])}
            self._server.post("runs/update", {"run_id": self._id, "status": "RUNNING"})
        else:
            tags = [{"key": RUN_TAG, "value": self._about.run}, {"key": "mlflow.source.name", "value": "darkroom"}]
            made = {"experiment_id": experiment, "run_name": self._about.title, "tags": tags}
            answer = self._server.post("runs/create", made | {"start_time": _milliseconds(self._clock())})
            self._id = answer["run"]["info"]["run_id"]
        # Again after a restart: the first attempt may have ended between the two requests; equal values are welcome.
        parameters = [{"key": key, "value": value[:MAXIMUM_VALUE]} for key, value in self._about.parameters.items()]
        for some in _chunks(parameters, MAXIMUM_PARAMETERS):
            self._server.post("runs/log-batch", {"run_id": self._id, "params": some})

    def _experiment_id(self) -> str:
        try:
            found = self._server.get("experiments/get-by-name", experiment_name=self._experiment)
        except _RefusalError as error:
            if error.code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return self._make_experiment()
        return str(found["experiment"]["experiment_id"])

    def _make_experiment(self) -> str:
        try:
            return str(self._server.post("experiments/create", {"name": self._experiment})["experiment_id"])
        except _RefusalError as error:
            if error.code != "RESOURCE_ALREADY_EXISTS":
                raise
            raise TrackerAwayError("another run made the experiment at the same moment") from error

    def send(self, points: Sequence[Point]) -> None:
        """Log every value of these points."""
        metrics = [
            {"key": key, "value": value, "timestamp": _milliseconds(point.time), "step": point.step}
            for point in points
            for key, value in point.values.items()
            if point.step > self._known.get(key, -1)
        ]
        for some in _chunks(metrics, MAXIMUM_METRICS):
            self._server.post("runs/log-batch", {"run_id": self._id, "metrics": some})

    def end(self, outcome: str) -> None:
        """Close the run."""
        ended = {"status": STATUSES.get(outcome, "FAILED"), "end_time": _milliseconds(self._clock())}
        self._server.post("runs/update", {"run_id": self._id, **ended})

    def abandon(self) -> None:
        """Do nothing: no request outlives its deadline."""


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _chunks(items: Sequence[_Answer], size: int) -> Iterator[list[_Answer]]:
    rest = iter(items)
    while some := list(islice(rest, size)):
        yield some
