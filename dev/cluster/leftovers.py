"""Remove what a cluster leaves when it is stopped, hard or softly: processes of pods, mounts, cgroups, directories.

Everything here is found by where it lies, under the cluster's own directories and its own cgroup, never by a name.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from dev.cluster.console import ClusterError
from dev.cluster.paths import Layout
from dev.cluster.processes import end_process, start_ticks
from dev.cluster.waiting import wait_for

CGROUP = "darkroom"
KUBELET_LINKS = Path("/var/log/containers")
CNI_CACHE = Path("/var/lib/cni/results")
DEVICE_PLUGINS = Path("/var/lib/kubelet/device-plugins")


def _mountinfo() -> Iterator[tuple[str, str]]:
    """Yield (mount point, file system type) in the order of mounting."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        point = before.split()[4].encode().decode("unicode_escape")  # blanks are written as \040
        yield point, after.split()[0]


def cgroup_directories() -> list[Path]:
    """Return the cluster's directory in every cgroup hierarchy."""
    return [Path(point) / CGROUP for point, kind in _mountinfo() if kind in ("cgroup", "cgroup2")]


def make_cgroups() -> None:
    """Make the cgroup under which the kubelet puts every pod, so that they can be told from anybody else's."""
    for directory in cgroup_directories():
        directory.mkdir(exist_ok=True)
        for name in ("cpuset.cpus", "cpuset.mems"):  # a new cpuset of the first version is empty and takes nobody
            target, source = directory / name, directory.parent / name
            if target.exists() and source.exists() and not target.read_text().strip():
                target.write_text(source.read_text())


def pod_processes() -> set[int]:
    """Return the processes in the cluster's cgroup."""
    pids: set[int] = set()
    for directory in cgroup_directories():
        for path in directory.rglob("cgroup.procs"):
            with suppress(OSError):
                pids.update(int(line) for line in path.read_text().split())
    return pids - {0, os.getpid()}


def kill_pods() -> None:
    """Kill whatever still runs in the cluster's cgroup: the processes of pods whose runtime is gone."""
    for pid in pod_processes():
        ticks = start_ticks(pid)
        if ticks is not None:
            end_process(pid, ticks, grace=0.0)


def remove_cgroups() -> None:
    """Remove the cluster's cgroups, from the leaves up."""

    def removed() -> bool:
        for root in cgroup_directories():
            for directory in sorted((path for path in root.rglob("*") if path.is_dir()), reverse=True):
                with suppress(OSError):
                    directory.rmdir()
            with suppress(OSError):
                root.rmdir()
        return not any(directory.exists() for directory in cgroup_directories())

    wait_for(removed, "the pods' cgroups are empty", timeout=10, pause=0.05)  # a zombie holds its cgroup


def mounts_below(*roots: Path) -> list[str]:
    """Return mount points at or under these directories, the last mounted first."""
    prefixes = tuple(f"{root}/" for root in roots)
    return [point for point, _ in _mountinfo() if f"{point}/".startswith(prefixes)][::-1]


def detach(*roots: Path) -> None:
    """Detach every mount at or under these directories."""
    while points := mounts_below(*roots):
        result = subprocess.run(["umount", "--lazy", *points], capture_output=True, text=True, check=False)
        left = mounts_below(*roots)
        if len(left) >= len(points):  # several mounts may lie on one point: another round helps as long as one goes
            raise ClusterError(f"these mounts cannot be detached: {', '.join(left)}\n{result.stderr}")


def unmount(layout: Layout) -> None:
    """Detach every mount of the cluster: root file systems, volumes, network namespaces."""
    detach(layout.run, layout.data)


def _remove_links(layout: Layout) -> None:
    """Remove the links and notes that kubelet and the network plugin put into fixed places of the system."""
    if KUBELET_LINKS.is_dir():
        for link in KUBELET_LINKS.iterdir():
            if link.is_symlink() and str(layout.data) in str(link.readlink()):
                link.unlink()
    if CNI_CACHE.is_dir():
        for note in CNI_CACHE.glob("darkroom-*-eth0"):
            sandbox = note.name.removeprefix("darkroom-").removesuffix("-eth0")
            (CNI_CACHE / f"cni-loopback-{sandbox}-lo").unlink(missing_ok=True)
            note.unlink()
    if layout.kubelet.exists():  # it was our kubelet, then, that put these there
        for name in ("kubelet.sock", "kubelet_internal_checkpoint"):
            (DEVICE_PLUGINS / name).unlink(missing_ok=True)
        with suppress(OSError):  # not empty where another kubelet has been
            DEVICE_PLUGINS.rmdir()
            DEVICE_PLUGINS.parent.rmdir()


def remove_files(layout: Layout) -> None:
    """Remove everything that describes the stopped cluster; images, objects and logs stay."""
    assert not mounts_below(layout.run, layout.data), "never delete through a mount"
    _remove_links(layout)
    for directory in (layout.kubelet, layout.pki, layout.data / "pods", layout.data / "etcd"):
        shutil.rmtree(directory, ignore_errors=True)
    for path in layout.data.glob("*.kubeconfig"):
        path.unlink()
    aside = layout.data / "containerd.aside"
    if aside.exists():  # put there by a test of an earlier version, stopped before it had put it back
        (layout.data / "containerd").unlink(missing_ok=True)
        aside.rename(layout.data / "containerd")
    shutil.rmtree(layout.run, ignore_errors=True)  # last: it is the sign that there is something to clear
