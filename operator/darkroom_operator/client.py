"""The few calls to the API server that the operator makes, as a narrow protocol over dicts.

Everything else in the operator sees only `KubeClient` and `ApiError`, so another library is a change to `kube` alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from darkroom_operator.objects import Object, Resource

UNREACHABLE = 0
"""Status of a call that got no answer: whether it took effect is unknown."""


@dataclass(frozen=True)
class Listing:
    """What a list call returned: objects as of one resource version."""

    items: list[Object]
    version: int


class ApiError(Exception):
    """The API server refused a call, or did not answer it."""

    def __init__(self, status: int, reason: str, message: str, *, fields: tuple[str, ...] = ()) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.fields = fields
        """Paths of the fields that validation found wrong; a policy's refusal names none."""


@dataclass(frozen=True)
class Preconditions:
    """What must still hold for a deletion to be carried out."""

    uid: str
    propagation: str = field(default="Foreground")
    """Foreground keeps the name taken until the pods are gone: no successor can start beside them."""


class KubeClient(Protocol):
    """Access to one API server. Every method raises `ApiError`."""

    async def list_all(self, resource: Resource, namespace: str | None, *, selector: str = "") -> Listing:
        """Return all objects of a type, of one namespace or of all, that a label selector matches."""

    async def get(self, resource: Resource, namespace: str, name: str) -> Object:
        """Return an object."""

    async def create(self, resource: Resource, body: Object) -> Object:
        """Create an object in the namespace that its metadata names."""

    async def patch(
        self, resource: Resource, namespace: str, name: str, *, body: Object, subresource: str = ""
    ) -> Object:
        """Apply a JSON merge patch."""

    async def delete(self, resource: Resource, namespace: str, name: str, *, preconditions: Preconditions) -> None:
        """Begin to delete an object."""
