"""The image registry of the local cluster: plain HTTP on the bridge, so that a node pulls only what has changed."""

from __future__ import annotations

import http.client
import json
from pathlib import Path

from dev.cluster import binaries


def config(address: str, port: int, data: Path) -> dict[str, object]:
    """Return the registry's configuration."""
    return {
        "version": "0.1",
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(data)}, "delete": {"enabled": True}},
        "http": {"addr": f"{address}:{port}"},
    }


def command(configuration: Path, address: str, port: int, *, data: Path) -> list[str]:
    """Write the configuration and return the command line."""
    configuration.write_text(json.dumps(config(address, port, data)))
    return [str(binaries.registry()), "serve", str(configuration)]


def answers(registry: str, *, tls: bool = False) -> bool:
    """Tell whether a registry speaks the protocol there; one that asks for a login does."""
    return _head(registry, "/v2/", tls=tls) in (200, 401)


def has_image(registry: str, repository: str, tag: str, *, tls: bool = False) -> bool:
    """Tell whether the registry holds this image already."""
    return _head(registry, f"/v2/{repository}/manifests/{tag}", tls=tls) == 200


def speaks_tls(registry: str) -> bool | None:
    """Tell how to speak to a registry; None if it cannot be reached either way."""
    return next((tls for tls in (False, True) if answers(registry, tls=tls)), None)


def _head(registry: str, path: str, *, tls: bool) -> int:
    kind = http.client.HTTPSConnection if tls else http.client.HTTPConnection
    connection = kind(registry, timeout=5)
    formats = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"
    try:
        connection.request("HEAD" if "manifests" in path else "GET", path, headers={"Accept": formats})
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()
