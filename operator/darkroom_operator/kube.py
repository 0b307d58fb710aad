"""`KubeClient` on kubernetes.aio: its connection, certificates and token rotation, without its models.

Requests go through the library's `call_api` and stay dicts: parsing a Job into models costs more than the request.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import aiohttp
import kubernetes.aio.client
import kubernetes.aio.config

from darkroom_operator.client import UNREACHABLE, ApiError, Listing, Preconditions
from darkroom_operator.objects import Object, Resource

REQUEST_TIMEOUT: Final = 30.0
PAGE: Final = 500
"""Objects per list call: bounds the memory of an answer on both sides."""
_SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


@asynccontextmanager
async def connect() -> AsyncIterator[AioClient]:
    """Connect as the pod's ServiceAccount if there is one, else as the kubeconfig says."""
    configuration = kubernetes.aio.client.Configuration()
    if _SERVICE_ACCOUNT.exists():
        kubernetes.aio.config.load_incluster_config(client_configuration=configuration)
    else:
        # The library reads KUBECONFIG at import; given explicitly it is the environment of now that counts.
        path = os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
        await kubernetes.aio.config.load_kube_config(config_file=path, client_configuration=configuration)
    # As kopf's: the API server is never reached through the proxy that an environment may name for other traffic.
    configuration.client_session_kwargs = {"trust_env": False}
    async with kubernetes.aio.client.ApiClient(configuration) as api:
        api.user_agent = "darkroom-operator"
        yield AioClient(api)


class AioClient:
    """See `darkroom_operator.client.KubeClient`."""

    def __init__(self, api: Any) -> None:
        self._api = api

    async def list_all(self, resource: Resource, namespace: str | None, *, selector: str = "") -> Listing:
        items: list[Object] = []
        query = [("limit", str(PAGE)), *([("labelSelector", selector)] if selector else [])]
        proceed = ""
        while True:
            paged = [*query, ("continue", proceed)] if proceed else query
            page = await self._call("GET", _path(resource, namespace), query=paged)
            items += page["items"]
            proceed = page["metadata"].get("continue") or ""
            if not proceed:
                # Every page is of the first page's resource version.
                return Listing(items, int(page["metadata"]["resourceVersion"]))

    async def get(self, resource: Resource, namespace: str, name: str) -> Object:
        return await self._call("GET", _path(resource, namespace, name))

    async def create(self, resource: Resource, body: Object) -> Object:
        return await self._call("POST", _path(resource, body["metadata"]["namespace"]), body=body)

    async def patch(
        self, resource: Resource, namespace: str, name: str, *, body: Object, subresource: str = ""
    ) -> Object:
        path = _path(resource, namespace, name) + (f"/{subresource}" if subresource else "")
        return await self._call("PATCH", path, body=body, content_type="application/merge-patch+json")

    async def delete(self, resource: Resource, namespace: str, name: str, *, preconditions: Preconditions) -> None:
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {"uid": preconditions.uid},
            "propagationPolicy": preconditions.propagation,
        }
        await self._call("DELETE", _path(resource, namespace, name), body=body)

    async def _call(
        self,
        method: str,
        path: str,
        *,
        query: list[tuple[str, str]] | None = None,
        body: Object | None = None,
        content_type: str = "application/json",
    ) -> Object:
        try:
            request = await self._api.param_serialize(
                method,
                path,
                query_params=query or [],
                header_params={"Accept": "application/json", "Content-Type": content_type},
                body=body,
                auth_settings=["BearerToken"],
            )
            response = await self._api.call_api(*request, _request_timeout=REQUEST_TIMEOUT)
            data = await response.read()
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise ApiError(UNREACHABLE, "Unreachable", f"{method} {path}: {error or type(error).__name__}") from error
        return _answer(response.status, data)


def _path(resource: Resource, namespace: str | None, name: str = "") -> str:
    parts = ["apis", resource.group] if resource.group else ["api"]
    parts.append(resource.version)
    if namespace is not None:
        parts += ["namespaces", namespace]
    parts.append(resource.plural)
    if name:
        parts.append(name)
    return "".join(f"/{quote(part, safe='')}" for part in parts)


def _answer(status: int, data: bytes) -> Object:
    try:
        parsed = json.loads(data)
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise ApiError(status, "Unintelligible", data[:200].decode(errors="replace"))
    if status >= 400:
        causes = (parsed.get("details") or {}).get("causes") or ()
        fields = tuple(str(cause["field"]) for cause in causes if cause.get("field"))
        raise ApiError(status, str(parsed.get("reason") or "Unknown"), str(parsed.get("message") or ""), fields=fields)
    return parsed
