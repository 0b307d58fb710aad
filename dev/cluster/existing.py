"""A cluster that is somebody else's: nothing of it is started or stopped, images go to a registry it pulls from.

`CLUSTER=existing` with KUBECONFIG and DARKROOM_REGISTRY. An S3 store may be given by DARKROOM_S3_ENDPOINT with the
usual AWS keys; without one SeaweedFS is started here, on an address that the cluster's pods reach.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from dev.cluster import binaries, registry, storage
from dev.cluster.console import ClusterError, say, stage
from dev.cluster.full import BUCKETS, State, exclusive
from dev.cluster.kube import ApiServer
from dev.cluster.paths import Layout
from dev.cluster.ports import free_ports
from dev.cluster.processes import Supervisor, is_alive


def is_chosen(environment: Mapping[str, str] = os.environ) -> bool:
    """Tell whether the caller brings a cluster along."""
    given = environment.get("CLUSTER", "local")
    if given not in ("local", "existing"):
        raise ClusterError(f"CLUSTER: got {given!r}, allowed are 'local' (the default) and 'existing'")
    return given == "existing"


def _required(environment: Mapping[str, str], name: str, what: str) -> str:
    value = environment.get(name)
    if not value:
        raise ClusterError(f"CLUSTER=existing needs {name}: {what}")
    return value


def kubectl() -> str:
    """Return the kubectl of whoever has a cluster; only without one is it built, which takes minutes."""
    found = shutil.which("kubectl")
    if found:
        return found
    binaries.ensure(binaries.KUBERNETES)
    return str(binaries.kubernetes_directory() / "kubectl")


def current_context(kubeconfig: str) -> str:
    """Return the current context alone, as a kubeconfig with everything that it refers to inside."""
    command = [kubectl(), "config", "view", "--minify", "--flatten", "--raw", "--output=json"]
    environment = {**os.environ, "KUBECONFIG": kubeconfig}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise ClusterError(f"KUBECONFIG {kubeconfig}: {result.stderr.strip()}")
    return result.stdout


def _write_private(path: Path, content: str) -> None:
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(content)


def reachable_address(server: str, environment: Mapping[str, str]) -> str:
    """Return this machine's address as the cluster sees it: the one from which it speaks to the API server."""
    given = environment.get("DARKROOM_HOST_ADDRESS")
    if given:
        _require_own_ipv4(given)
        return given
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # connecting sends nothing
        try:
            probe.connect((urlsplit(server).hostname or "", 9))
        except OSError as error:
            raise ClusterError(
                f"the API server {server} is not reached by IPv4 ({error}), and IPv6 is not supported for an S3 store "
                "of one's own: set DARKROOM_HOST_ADDRESS to this machine's IPv4 address as pods see it, or "
                "DARKROOM_S3_ENDPOINT to a store that exists"
            ) from error
        address = str(probe.getsockname()[0])
    if address.startswith("127."):
        raise ClusterError(
            f"the API server {server} is on this machine's loopback, where no pod finds an S3 store. Set "
            "DARKROOM_HOST_ADDRESS to this machine's address as pods see it (kind: the gateway that `docker network "
            "inspect kind` shows), or DARKROOM_S3_ENDPOINT to a store that exists"
        )
    return address


def _require_own_ipv4(address: str) -> None:
    """Raise unless a server can listen on this address here."""
    with socket.socket(socket.AF_INET) as probe:
        try:
            probe.bind((address, 0))
        except OSError as error:
            raise ClusterError(
                f"DARKROOM_HOST_ADDRESS: got {address!r}, allowed is an IPv4 address of this machine (IPv6 is not "
                f"supported): {error}. kind: take the IPv4 gateway that `docker network inspect kind` shows"
            ) from error


def up(layout: Layout, environment: Mapping[str, str] = os.environ) -> State:
    """Check that the cluster and its registry can be used, and have an S3 store."""
    kubeconfig = _required(environment, "KUBECONFIG", "the file with which kubectl reaches the cluster")
    target = _required(environment, "DARKROOM_REGISTRY", "HOST:PORT of an image registry that its nodes pull from")
    with exclusive(layout):
        binaries.ensure_helm()
        with stage("look at the existing cluster and its registry"):
            chosen = current_context(kubeconfig)
            server = ApiServer.from_kubeconfig(json.loads(chosen))
            status, body = server.request("GET", "/version")
            if status != 200:
                detail = body.decode(errors="replace")[:300]
                raise ClusterError(f"the API server {server.url} of KUBECONFIG {kubeconfig} says {status}: {detail}")
            if registry.speaks_tls(target.partition("/")[0]) is None:
                raise ClusterError(f"DARKROOM_REGISTRY {target}: no image registry answers there, by HTTP or HTTPS")
        endpoint = _given_endpoint(environment) or _own_endpoint(layout, server.url, environment)
        bucket = environment.get("DARKROOM_S3_BUCKET", BUCKETS[0])
        _write_private(layout.kubeconfig, chosen)  # whatever context is current later, it is this one that is meant
        state = State(str(layout.kubeconfig), target, endpoint, bucket, time.time())
        state.write(layout)
    say(f"using the cluster at {server.url}, the registry {target} and the S3 store {endpoint.url}")
    return state


def _given_endpoint(environment: Mapping[str, str]) -> storage.Endpoint | None:
    url = environment.get("DARKROOM_S3_ENDPOINT")
    if not url:
        return None
    what = "the key of the store that DARKROOM_S3_ENDPOINT names"
    return storage.Endpoint(
        url,
        access_key=_required(environment, "AWS_ACCESS_KEY_ID", what),
        secret_key=_required(environment, "AWS_SECRET_ACCESS_KEY", what),
        region=environment.get("AWS_DEFAULT_REGION", storage.REGION),
    )


def _own_endpoint(layout: Layout, server: str, environment: Mapping[str, str]) -> storage.Endpoint:
    """Return a store that runs here, starting it unless it does already."""
    programs = Supervisor(layout.records, layout.logs)
    record, kept = programs.find("seaweedfs"), layout.data / "s3.json"  # the state may name a store that was given
    if record and is_alive(record):
        with suppress(OSError, ValueError, TypeError):
            running = storage.Endpoint(**json.loads(kept.read_text()))
            if storage.is_healthy(running.url):
                return running
    storage.stop(programs)
    address = reachable_address(server, environment)
    endpoint = storage.new_endpoint(address, free_ports(1, address)[0])
    with stage(f"start an S3 store on {address}"):
        storage.start(
            programs, endpoint, data=layout.data / "objects", sockets=layout.run / "seaweedfs", buckets=BUCKETS
        )
    _write_private(kept, json.dumps(endpoint.as_dict()))
    return endpoint


def describe(layout: Layout) -> tuple[str, bool]:
    """Return a text for a person, and whether cluster, registry and store can be used."""
    state = State.read(layout)
    if state is None:
        return "no existing cluster is in use yet (CLUSTER=existing python -m dev.cluster up)", False
    server = ApiServer.from_kubeconfig(json.loads(current_context(state.kubeconfig)))
    parts = {
        f"API server      {server.url}": server.request("GET", "/version")[0] == 200,
        f"image registry  {state.registry}": registry.speaks_tls(state.registry.partition("/")[0]) is not None,
        f"S3 store        {state.s3.url}": storage.is_healthy(state.s3.url),
    }
    lines = [f"  {what} {'answers' if holds else 'does NOT answer'}" for what, holds in parts.items()]
    return "\n".join(["an existing cluster is in use", *lines]), all(parts.values())


def down(layout: Layout) -> None:
    """Stop what `up` started here; the cluster and its registry stay as they are."""
    with exclusive(layout), stage("stop the S3 store"):
        storage.stop(Supervisor(layout.records, layout.logs))
        for path in (layout.state_file, layout.kubeconfig, layout.data / "s3.json"):
            path.unlink(missing_ok=True)
