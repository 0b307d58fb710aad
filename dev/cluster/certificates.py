"""One certificate authority for a cluster, and what its components show each other.

Elliptic keys throughout: a whole set takes a tenth of a second, so a fresh one is made at every start and none is kept.
"""

from __future__ import annotations

import base64
import datetime
import ipaddress
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LIFETIME = datetime.timedelta(days=365)
SERVER_NAMES = (
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
)


@dataclass(frozen=True)
class Identity:
    """Who a certificate names: `groups` become Kubernetes groups, `names` are the addresses of a server."""

    common_name: str
    groups: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pair:
    """A certificate and its key on disk."""

    certificate: Path
    key: Path


def _write_private(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _subject(identity: Identity) -> x509.Name:
    groups = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in identity.groups]
    return x509.Name([*groups, x509.NameAttribute(NameOID.COMMON_NAME, identity.common_name)])


class Authority:
    """A new certificate authority whose files lie in one directory."""

    def __init__(self, directory: Path, *, now: datetime.datetime) -> None:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._directory = directory
        self._now = now
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _subject(Identity("darkroom-local-cluster"))
        certificate = (
            self._builder(self._name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .add_extension(_usage(authority=True), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.certificate = directory / "ca.crt"
        self.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def _builder(self, subject: x509.Name, public_key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._now - datetime.timedelta(hours=1))
            .not_valid_after(self._now + LIFETIME)
        )

    def issue(self, name: str, identity: Identity) -> Pair:
        """Write `name.crt` and `name.key` for a client that may also serve."""
        key = ec.generate_private_key(ec.SECP256R1())
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = (
            self._builder(_subject(identity), key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(identifier, critical=False)
            .add_extension(_usage(authority=False), critical=True)
        )
        if identity.names:
            names = [_general_name(entry) for entry in identity.names]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        pair = Pair(self._directory / f"{name}.crt", self._directory / f"{name}.key")
        certificate = builder.sign(self._key, hashes.SHA256())
        pair.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        _write_private(pair.key, _key_pem(key))
        return pair

    def signing_key(self, name: str) -> Path:
        """Write a bare key, for the tokens of service accounts."""
        path = self._directory / f"{name}.key"
        _write_private(path, _key_pem(ec.generate_private_key(ec.SECP256R1())))
        return path


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def write_kubeconfig(path: Path, server: str, *, authority: Path, pair: Pair) -> Path:
    """Write a kubeconfig that holds everything it needs, so that it can be copied (JSON is YAML)."""

    def inline(file: Path) -> str:
        return base64.b64encode(file.read_bytes()).decode()

    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": "darkroom", "cluster": {"server": server, "certificate-authority-data": inline(authority)}}
        ],
        "users": [
            {
                "name": "user",
                "user": {
                    "client-certificate-data": inline(pair.certificate),
                    "client-key-data": inline(pair.key),
                },
            }
        ],
        "contexts": [{"name": "darkroom", "context": {"cluster": "darkroom", "user": "user"}}],
        "current-context": "darkroom",
    }
    _write_private(path, json.dumps(content, indent=1).encode())
    return path


CLIENTS: dict[str, Identity] = {
    "admin": Identity("admin", groups=("system:masters",)),
    "apiserver-kubelet-client": Identity("apiserver-kubelet-client", groups=("system:masters",)),
    "kube-controller-manager": Identity("system:kube-controller-manager"),
    "kube-scheduler": Identity("system:kube-scheduler"),
    "kube-proxy": Identity("system:kube-proxy"),
    "kubelet": Identity("system:node:node1", groups=("system:nodes",)),
}


def issue_all(directory: Path, addresses: Sequence[str], *, now: datetime.datetime) -> None:
    """Write everything a cluster needs: `addresses` are the IPs its servers answer on."""
    authority = Authority(directory, now=now)
    for name, identity in CLIENTS.items():
        authority.issue(name, identity)
    authority.issue("apiserver", Identity("kube-apiserver", names=(*SERVER_NAMES, *addresses)))
    authority.issue("etcd", Identity("etcd", names=("localhost", "127.0.0.1")))
    authority.issue("kubelet-server", Identity("node1", names=("node1", *addresses)))
    authority.signing_key("service-account")


def pair(directory: Path, name: str) -> Pair:
    """Return the files that `issue_all` wrote under this name."""
    return Pair(directory / f"{name}.crt", directory / f"{name}.key")
