"""Read a resource of the cluster: the only way from this command line to Kubernetes."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import urllib3
from pydantic import ValidationError

from darkroom_api.base import explain
from darkroom_api.kinds import TRAININGS, TrainingKind
from darkroom_api.layout import run_prefix
from darkroom_api.names import GROUP, VERSION, run_id
from darkroom_api.status import TrainingStatus
from darkroom_api.training import TrainingSpec
from darkroom_api.uris import S3Location, parse_s3
from darkroom_cli.errors import UserError

FORMS = " or ".join(f"{kind.short}/NAME" for kind in TRAININGS)
"""How a person names a training."""
TIMEOUT_SECONDS = (5, 15)
"""To connect and to read: the client's own default is to wait for ever."""


class ClusterAwayError(Exception):
    """The API server did not answer, or not well; asking again may help."""


@dataclass(frozen=True)
class Reference:
    """A kind of training and a name, as in ``lora/anna``."""

    kind: TrainingKind
    name: str

    def __str__(self) -> str:
        return f"{self.kind.short}/{self.name}"


def parse_reference(text: str) -> Reference:
    """Parse ``lora/anna``; the kind may be given by its short, singular or plural name.

    Raises:
        UserError: The text is no such reference.
    """
    kind_name, slash, name = text.partition("/")
    for kind in TRAININGS:
        if slash and name and kind_name.lower() in {kind.short, kind.singular, kind.plural}:
            return Reference(kind, name)
    raise UserError(f"resource: {text!r} is not allowed; give {FORMS}, such as {TRAININGS[0].short}/anna")


@dataclass(frozen=True)
class Training:
    """A training as the API server returned it."""

    reference: Reference
    namespace: str
    body: dict[str, Any]

    @property
    def uid(self) -> str:
        return str(self.body["metadata"]["uid"])

    @property
    def epochs(self) -> int:
        """Return the number of epochs; the server has filled in the default."""
        return int(self.body["spec"].get("training", {}).get("epochs", 0))

    @property
    def status(self) -> TrainingStatus:
        return TrainingStatus.model_validate(self.body.get("status", {}))

    @property
    def spec(self) -> TrainingSpec:
        """Return the spec.

        Raises:
            UserError: The cluster's resource has what this release of the command line does not know.
        """
        try:
            return self.reference.kind.spec.model_validate(self.body["spec"])
        except ValidationError as error:
            raise UserError(
                f"{self.reference} in namespace {self.namespace} is not understood; "
                f"install the release of kubectl-darkroom that fits the cluster's operator:\n{explain(error, 'spec')}"
            ) from error

    @property
    def prefix(self) -> S3Location:
        """Return where everything of the run lies in the store."""
        return run_prefix(parse_s3(self.spec.output.uri), name=self.reference.name, run=run_id(self.uid))


class Reader(Protocol):
    """Reads one resource again and again."""

    def read(self) -> Training | None:
        """Return the resource as it is now, or None if there is none.

        Raises:
            ClusterAwayError: The API server does not answer; asking again may help.
            UserError: The API server refuses.
        """


class ClusterReader:
    """Reads one resource with the credentials of a kubeconfig."""

    def __init__(
        self, reference: Reference, *, namespace: str | None, kubeconfig: Path | None, context: str | None
    ) -> None:
        # Half a second to import: commands that need no cluster are spared it.
        from kubernetes import client, config

        path = str(kubeconfig) if kubeconfig else None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                api = config.new_client_from_config(config_file=path, context=context)
            own = _context_namespace(path, context)
        except (config.ConfigException, OSError) as error:
            raise UserError(
                f"kubeconfig: {str(error) or type(error).__name__}; give --kubeconfig FILE (and --context NAME), "
                "or set KUBECONFIG"
            ) from error
        self.reference = reference
        self.namespace = namespace or own or "default"
        self._objects = client.CustomObjectsApi(api)
        self._refused: type[Exception] = client.ApiException

    def read(self) -> Training | None:
        """Return the resource as it is now, or None if there is none."""
        kind = self.reference.kind
        try:
            body = self._objects.get_namespaced_custom_object(
                GROUP, VERSION, self.namespace, kind.plural, self.reference.name, _request_timeout=TIMEOUT_SECONDS
            )
        except urllib3.exceptions.HTTPError as error:
            raise ClusterAwayError(_short(error)) from error
        except self._refused as error:
            self._require_absence(error)
            return None
        return Training(self.reference, self.namespace, body)

    def _require_absence(self, error: Any) -> None:
        """Raise unless the answer says that there is no such resource."""
        if error.status == 404 and f'"name":"{self.reference.name}"' not in str(error.body).replace(" ", ""):
            raise UserError(
                f"the cluster does not know {self.reference.kind.name}; install the operator: "
                "helm install darkroom charts/darkroom, see the README"
            ) from error
        if error.status in {401, 403}:
            raise UserError(
                f"the cluster refuses to show {self.reference} in namespace {self.namespace} "
                f"({error.status} {error.reason}); ask for the role `view` there, or give --context"
            ) from error
        if error.status != 404:
            raise ClusterAwayError(f"{error.status} {error.reason}") from error


def _context_namespace(kubeconfig: str | None, context: str | None) -> str | None:
    """Return the namespace of the named context, of the current one if none is named; that one need not be set."""
    from kubernetes.config import kube_config

    merged = kube_config.KubeConfigMerger(kubeconfig or kube_config.KUBE_CONFIG_DEFAULT_LOCATION).config
    loader = kube_config.KubeConfigLoader(config_dict=merged, active_context=context, config_base_path=None)
    namespace: str | None = loader.current_context["context"].get("namespace")
    return namespace


def _short(error: Exception) -> str:
    return str(error.__cause__ or error).splitlines()[0][:200]


def read_existing(reader: Reader, reference: Reference) -> Training:
    """Return the resource.

    Raises:
        UserError: There is none, or the cluster does not answer.
    """
    try:
        training = reader.read()
    except ClusterAwayError as error:
        raise UserError(f"the cluster does not answer: {error}; check --kubeconfig and the network") from error
    if training is None:
        raise UserError(f"{reference} does not exist; see `kubectl get {reference.kind.plural} --all-namespaces`")
    return training
