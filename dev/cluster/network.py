"""The host's side of the pod network: one bridge whose address every pod can reach, and a few firewall rules.

The address exists before any pod does, so servers on the host (registry, S3, proxies of tests) can listen on it.
"""

from __future__ import annotations

import ipaddress
import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil

from dev.cluster.console import ClusterError
from dev.cluster.processes import boot_id

BRIDGE = "darkroom0"
ADDRESS = "10.244.0.1"
POD_RANGE = "10.244.0.0/24"
COMMENT = "darkroom-local-cluster"
TABLES = ("raw", "mangle", "nat", "filter")
SHARED_CHAINS = ("CNI-HOSTPORT-",)
"""Prefix of the chains that the port mapper makes once for all networks of a machine, podman's among them."""

SYSCTL_ROOT = Path("/proc/sys")

# What the kubelet changes without asking, and what routing needs: put back by `restore_sysctls`.
SYSCTLS = {
    "net/ipv4/ip_forward": "1",
    "net/bridge/bridge-nf-call-iptables": "1",
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
}


def _ip(*arguments: str, check: bool = True) -> str:
    return subprocess.run(["ip", *arguments], check=check, capture_output=True, text=True).stdout


def _has_bridge() -> bool:
    return BRIDGE in (name for _, name in socket.if_nameindex())


def require_unused_range() -> None:
    """Raise if another interface of the machine already has an address among the pods'."""
    for name, addresses in psutil.net_if_addrs().items():
        for entry in addresses:
            if entry.family != socket.AF_INET or name == BRIDGE:
                continue
            if ipaddress.ip_address(entry.address) in ipaddress.ip_network(POD_RANGE):
                raise ClusterError(
                    f"interface {name} already has {entry.address}, inside the pods' range {POD_RANGE}: "
                    "is another cluster running here? Use it with CLUSTER=existing, or remove that interface"
                )


def is_set_up(saved: Path) -> bool:
    """Tell whether anything of `set_up` is here, so that rules named KUBE-* and CNI-* may be this cluster's."""
    return _has_bridge() or bool(_saved_sysctls(saved)) or any(COMMENT in dump for *_, dump in _dumps())


def set_up(saved: Path) -> None:
    """Make the bridge and the rules; remember in `saved` what the kernel's settings were."""
    if not _saved_sysctls(saved):
        before = {name: _sysctl(name).read_text().strip() for name in SYSCTLS if _sysctl(name).exists()}
        saved.write_text(json.dumps({"boot": boot_id(), "values": before}))
    for name in ("net/ipv4/ip_forward", "net/bridge/bridge-nf-call-iptables"):
        if _sysctl(name).exists():  # the second only where the kernel filters bridges
            _sysctl(name).write_text(SYSCTLS[name])
    _ip("link", "add", BRIDGE, "type", "bridge")
    _ip("address", "add", f"{ADDRESS}/24", "dev", BRIDGE)
    _ip("link", "set", BRIDGE, "up")
    mark = f'-m comment --comment "{COMMENT}"'
    # Where another program has closed forwarding, pods would reach nothing.
    _restore("filter", [f"-I FORWARD -{side} {POD_RANGE} {mark} -j ACCEPT" for side in "sd"])
    _restore("nat", [f"-A POSTROUTING -s {POD_RANGE} ! -d {POD_RANGE} {mark} -j MASQUERADE"])


def _sysctl(name: str) -> Path:
    return SYSCTL_ROOT / name


def _restore(table: str, lines: list[str], *, program: str = "iptables") -> None:
    text = "\n".join([f"*{table}", *lines, "COMMIT", ""])
    result = subprocess.run(
        [f"{program}-restore", "--noflush", "--wait"], input=text, capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise ClusterError(f"{program}-restore refused:\n{text}{result.stderr}")


def _target(rule: str) -> str:
    words = rule.split()
    return words[words.index("-j") + 1] if "-j" in words else ""


def _pod_of_rule(rule: str) -> bool:
    """Tell whether a rule speaks of an address among the pods'."""
    for word in rule.split():
        host = word.partition("/")[0].partition(":")[0]
        try:
            if ipaddress.ip_address(host) in ipaddress.ip_network(POD_RANGE):
                return True
        except ValueError:
            continue
    return False


def _owned_chains(lines: list[str]) -> list[str]:
    """Return this cluster's chains: kubelet's and kube-proxy's, and the port mapper's for pods of this range.

    What the port mapper shares among networks goes only when no other network's chain is left to use it.
    """
    chains = [line[1:].split()[0] for line in lines if line.startswith(":")]
    mapped = [chain for chain in chains if chain.startswith("CNI-") and not chain.startswith(SHARED_CHAINS)]
    with_pods = {line.split()[1] for line in lines if line.startswith("-A ") and _pod_of_rule(line)}
    foreign = [chain for chain in mapped if chain not in with_pods]
    return [
        chain
        for chain in chains
        if chain.startswith("KUBE-")
        or (chain in mapped and chain not in foreign)
        or (chain.startswith(SHARED_CHAINS) and not foreign)
    ]


def removal(table_dump: str) -> list[str]:
    """Return the lines that take a cluster's chains and rules, and nothing else, out of a dumped table."""
    lines = table_dump.splitlines()
    owned = _owned_chains(lines)
    rules = []
    for line in lines:
        words = line.split()
        if not line.startswith("-A ") or words[1] in owned:
            continue
        if _target(line) in owned or COMMENT in words or f'"{COMMENT}"' in words:
            rules.append(f"-D {line[3:]}")
    # Naming a chain empties it; only then, and without rules that jump to it, can it be deleted.
    return [*(f":{chain} - [0:0]" for chain in owned), *rules, *(f"-X {chain}" for chain in owned)]


def _dumps() -> Iterator[tuple[str, str, str]]:
    """Yield (program, table, rules) of every table that this machine has."""
    for program in ("iptables", "ip6tables"):
        for table in TABLES if shutil.which(f"{program}-save") else ():
            dump = subprocess.run([f"{program}-save", "-t", table], capture_output=True, text=True, check=False)
            yield program, table, dump.stdout


def clear_rules() -> None:
    """Remove the cluster's rules and chains; only to be called where `is_set_up` or another trace says there are any.

    kube-proxy's chains have the same names in every cluster.
    """
    for program, table, dump in _dumps():
        lines = removal(dump)
        if lines:
            _restore(table, lines, program=program)


def _saved_sysctls(saved: Path) -> dict[str, str]:
    """Return the settings from before `set_up`; those of an earlier boot say nothing about this one."""
    try:
        content = json.loads(saved.read_text())
        return dict(content["values"]) if content["boot"] == boot_id() else {}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def restore_sysctls(saved: Path, root: Path = SYSCTL_ROOT) -> None:
    """Put back the kernel settings that `set_up` and the kubelet changed."""
    for name, value in _saved_sysctls(saved).items():
        if (root / name).exists():  # not after the module it belongs to was unloaded
            (root / name).write_text(value)
    saved.unlink(missing_ok=True)


def remove_bridge() -> None:
    """Remove the bridge and the pods' ends on it; right after a hard stop too."""
    if not _has_bridge():
        return
    for member in json.loads(_ip("-json", "link", "show", "master", BRIDGE) or "[]"):
        _ip("link", "delete", member["ifname"], check=False)  # may go by itself with its namespace
    _ip("link", "delete", BRIDGE)
