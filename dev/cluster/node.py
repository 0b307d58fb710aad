"""The node's side: configuration of containerd, its network plugin, the kubelet and kube-proxy.

Containerd comes from Debian and only its program is used: own configuration, socket, root and state, so a containerd
or docker that already runs on the machine is not touched.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import subprocess
import tarfile
from pathlib import Path

from dev.cluster import binaries, packages
from dev.cluster.components import Site
from dev.cluster.console import ClusterError
from dev.cluster.leftovers import CGROUP
from dev.cluster.network import ADDRESS, BRIDGE, POD_RANGE
from dev.cluster.paths import Layout

NAME = "node1"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
"""The kernel's names of machines as images say them."""

PAUSE_IMAGE = "localhost/pause:1"
REGISTRY = f"{ADDRESS}:5000"


def socket_path(layout: Layout) -> Path:
    return layout.run / "containerd" / "containerd.sock"


def containerd_config(layout: Layout) -> str:
    """Return containerd's configuration.

    restrict_oom_score_adj: without CAP_SYS_RESOURCE no sandbox starts otherwise. Network namespaces are mounted under
    the state directory, where a clean-up can tell them from anybody else's.
    """
    return f"""\
version = 2
root = "{layout.data / "containerd"}"
state = "{layout.run / "containerd"}"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs"]
[grpc]
address = "{socket_path(layout)}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE_IMAGE}"
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
stream_server_address = "127.0.0.1"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{layout.data / "cni"}"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "{layout.data / "registries"}"
"""


def cni_config(layout: Layout) -> dict[str, object]:
    """Return the pod network: one bridge, addresses handed out from a file that dies with the machine."""
    bridge = {
        "type": "bridge",
        "bridge": BRIDGE,
        "isGateway": True,
        "ipMasq": False,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "dataDir": str(layout.run / "cni"),
            "ranges": [[{"subnet": POD_RANGE, "gateway": ADDRESS}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    mapper = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "0.4.0", "name": "darkroom", "plugins": [bridge, mapper]}


def kubelet_config(layout: Layout) -> dict[str, object]:
    """Return the kubelet's configuration; it is lax about disk and swap, since this is a person's machine."""
    pki = layout.pki
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": ADDRESS,
        "healthzBindAddress": "127.0.0.1",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(pki / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(pki / "kubelet-server.crt"),
        "tlsPrivateKeyFile": str(pki / "kubelet-server.key"),
        "containerRuntimeEndpoint": f"unix://{socket_path(layout)}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{CGROUP}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "podLogsDir": str(layout.data / "pods"),
        "resolvConf": "/etc/resolv.conf",
        "clusterDNS": ["10.96.0.10"],  # nobody answers there; without it every pod gets a warning event
        "clusterDomain": "cluster.local",
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        "serializeImagePulls": True,
    }


def write_configuration(layout: Layout) -> None:
    """Write every file the node's programs read."""
    registries = layout.data / "registries" / REGISTRY
    for directory in (layout.run / "containerd", layout.data / "cni", registries, layout.kubelet):
        directory.mkdir(parents=True, exist_ok=True)
    (layout.data / "containerd.toml").write_text(containerd_config(layout))
    (layout.data / "cni" / "10-darkroom.conflist").write_text(json.dumps(cni_config(layout), indent=1))
    (layout.data / "kubelet.json").write_text(json.dumps(kubelet_config(layout), indent=1))
    url = f"http://{REGISTRY}"
    (registries / "hosts.toml").write_text(f'server = "{url}"\n[host."{url}"]\ncapabilities = ["pull", "resolve"]\n')


def containerd(layout: Layout) -> list[str]:
    return [
        packages.find("containerd") or "containerd",
        "--config",
        str(layout.data / "containerd.toml"),
        "--log-level=warn",
    ]


def kubelet(layout: Layout, site: Site) -> list[str]:
    """Return the kubelet's command line."""
    return [
        str(binaries.kubernetes_directory() / "kubelet"),
        f"--config={layout.data / 'kubelet.json'}",
        f"--kubeconfig={site.kubeconfig('kubelet')}",
        f"--hostname-override={NAME}",
        f"--node-ip={ADDRESS}",
        f"--root-dir={layout.kubelet}",
    ]


def kube_proxy(site: Site) -> list[str]:
    """Return kube-proxy's command line; the conntrack limits stay as the machine has them."""
    return [
        str(binaries.kubernetes_directory() / "kube-proxy"),
        f"--kubeconfig={site.kubeconfig('kube-proxy')}",
        f"--hostname-override={NAME}",
        "--proxy-mode=iptables",
        f"--cluster-cidr={POD_RANGE}",
        "--metrics-bind-address=127.0.0.1:10249",
        "--healthz-bind-address=127.0.0.1:10256",
        "--conntrack-max-per-core=0",
        "--conntrack-tcp-timeout-established=0",
        "--conntrack-tcp-timeout-close-wait=0",
    ]


def ctr(layout: Layout, *arguments: str, check: bool = True) -> str:
    """Run containerd's own client in the kubelet's namespace."""
    command = [
        packages.find("ctr") or "ctr",
        "--address",
        str(socket_path(layout)),
        "--namespace",
        "k8s.io",
        *arguments,
    ]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    if check and result.returncode:
        raise ClusterError(f"containerd refused `ctr {' '.join(arguments)}`: {result.stderr.strip()[-1000:]}")
    return result.stdout


def is_answering(layout: Layout) -> bool:
    command = [packages.find("ctr") or "ctr", "--address", str(socket_path(layout)), "--timeout", "2s", "version"]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def pause_archive(program: Path, target: Path) -> None:
    """Write the image that holds a pod's namespaces: one static program in a hand-made docker archive."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        member = tarfile.TarInfo("pause")
        member.mode, member.size = 0o755, program.stat().st_size
        with program.open("rb") as content:
            tar.addfile(member, content)
    digest = hashlib.sha256(layer.getvalue()).hexdigest()
    config = {
        "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {"Entrypoint": ["/pause"], "User": "65535:65535"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [PAUSE_IMAGE], "Layers": ["layer.tar"]}]
    with tarfile.open(target, "w") as tar:
        for name, content_bytes in (
            ("layer.tar", layer.getvalue()),
            ("config.json", json.dumps(config).encode()),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content_bytes)
            tar.addfile(member, io.BytesIO(content_bytes))


def ensure_pause_image(layout: Layout) -> None:
    """Import the sandbox image if containerd does not have it."""
    if PAUSE_IMAGE in ctr(layout, "images", "ls", "-q").split():
        return
    archive = layout.data / "pause.tar"
    pause_archive(binaries.pause(), archive)
    ctr(layout, "images", "import", str(archive))
    archive.unlink()


def remove_containers(layout: Layout) -> bool:
    """Kill and forget every container; True if there was one."""
    tasks = ctr(layout, "tasks", "ls", "-q").split()
    if tasks:
        ctr(layout, "tasks", "rm", "--force", *tasks, check=False)
    containers = ctr(layout, "containers", "ls", "-q").split()
    if containers:
        ctr(layout, "containers", "rm", *containers, check=False)
    return bool(containers)
