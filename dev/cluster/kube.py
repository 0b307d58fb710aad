"""The few calls to an API server that starting a cluster needs, with the standard library only."""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


class ApiServer:
    """A client for one API server, from a kubeconfig with embedded or referenced client certificates or a token."""

    def __init__(self, url: str, context: ssl.SSLContext, *, token: str | None = None) -> None:
        self.url = url
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._port = parts.port or 443
        self._context = context
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    @classmethod
    def from_files(cls, url: str, *, authority: Path, certificate: Path, key: Path) -> ApiServer:
        """Make a client from certificate files."""
        context = ssl.create_default_context(cafile=str(authority))
        context.load_cert_chain(certificate, key)
        return cls(url, context)

    @classmethod
    def from_kubeconfig(cls, values: dict[str, Any]) -> ApiServer:
        """Make a client from `kubectl config view --minify --flatten --raw -o json`."""
        cluster = values["clusters"][0]["cluster"]
        user = values["users"][0]["user"]
        data = cluster.get("certificate-authority-data")
        authority = base64.b64decode(data).decode() if data else None
        context = ssl.create_default_context(cadata=authority)
        if cluster.get("insecure-skip-tls-verify"):
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if "client-certificate-data" in user:
            with tempfile.NamedTemporaryFile() as file:  # ssl reads keys from files only
                file.write(base64.b64decode(user["client-certificate-data"]) + b"\n")
                file.write(base64.b64decode(user["client-key-data"]))
                file.flush()
                context.load_cert_chain(file.name)
        return cls(cluster["server"], context, token=user.get("token"))

    def request(
        self, method: str, path: str, *, body: object = None, content_type: str = "application/json", timeout: float = 5
    ) -> tuple[int, bytes]:
        """Return status and body; status 0 when there is nobody to answer."""
        connection = http.client.HTTPSConnection(self._host, self._port, context=self._context, timeout=timeout)
        headers = {**self._headers, "Content-Type": content_type, "Accept": "application/json"}
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None, headers)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            return 0, str(error).encode()
        finally:
            connection.close()

    def get(self, path: str) -> dict[str, Any] | None:
        """Return an object, or None if it is not there or nobody answers."""
        status, body = self.request("GET", path)
        if status != 200:
            return None
        parsed: dict[str, Any] = json.loads(body)
        return parsed

    def is_ready(self) -> bool:
        """Tell whether the API server says so itself."""
        return self.request("GET", "/readyz", timeout=2)[0] == 200

    def node_is_ready(self, name: str) -> bool:
        """Tell whether a node has the condition Ready."""
        node = self.get(f"/api/v1/nodes/{name}") or {}
        conditions = node.get("status", {}).get("conditions", [])
        return any(entry["type"] == "Ready" and entry["status"] == "True" for entry in conditions)

    def has_default_account(self) -> bool:
        """Tell whether pods can be created in `default`: before this account exists they are refused."""
        return self.get("/api/v1/namespaces/default/serviceaccounts/default") is not None
