"""The host's side of the pod network: one bridge whose address every pod can reach, and a few firewall rules.

The address exists before any pod does, so servers on the host (registry, S3, proxies of tests) can listen on it.
"""

from __future__ import annotations

import ipaddress
import json
import shutil
import subprocess
from pathlib import Path

from dev.cluster.console import ClusterError

BRIDGE = "darkroom0"
ADDRESS = "10.244.0.1"
POD_RANGE = "10.244.0.0/24"
COMMENT = "darkroom-local-cluster"
OWNED_CHAINS = ("KUBE-", "CNI-")
"""Prefixes of the chains that kubelet, kube-proxy and the port mapper make and leave behind."""

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


def _links() -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(_ip("-json", "address", "show"))
    return found


def _require_unused_range() -> None:
    """Raise if another interface of the machine already has an address among the pods'."""
    for link in _links():
        entries = link.get("addr_info", [])
        assert isinstance(entries, list), "ip prints a list"
        for entry in entries:
            inside = ipaddress.ip_address(entry["local"]) in ipaddress.ip_network(POD_RANGE)
            if inside and link["ifname"] != BRIDGE:
                raise ClusterError(
                    f"interface {link['ifname']} already has {entry['local']}, inside the pods' range {POD_RANGE}: "
                    "is another cluster running here? Use it with CLUSTER=existing, or remove that interface"
                )


def set_up(saved: Path) -> None:
    """Make the bridge and the rules; remember in `saved` what the kernel's settings were."""
    _require_unused_range()
    if not saved.exists():
        before = {name: _sysctl(name).read_text().strip() for name in SYSCTLS if _sysctl(name).exists()}
        saved.write_text(json.dumps(before))
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
    return Path("/proc/sys") / name


def _restore(table: str, lines: list[str], *, program: str = "iptables") -> None:
    text = "\n".join([f"*{table}", *lines, "COMMIT", ""])
    result = subprocess.run(
        [f"{program}-restore", "--noflush", "--wait"], input=text, capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise ClusterError(f"{program}-restore refused:\n{text}{result.stderr}")


def removal(table_dump: str) -> list[str]:
    """Return the lines that take a cluster's chains and rules, and nothing else, out of a dumped table."""
    lines = table_dump.splitlines()
    chains = [line[1:].split()[0] for line in lines if line.startswith(":")]
    owned = [chain for chain in chains if chain.startswith(OWNED_CHAINS)]
    rules = []
    for line in lines:
        words = line.split()
        if not line.startswith("-A ") or words[1] in owned:
            continue
        target = words[words.index("-j") + 1] if "-j" in words else ""
        if target in owned or COMMENT in words or f'"{COMMENT}"' in words:
            rules.append(f"-D {line[3:]}")
    # Naming a chain empties it; only then, and without rules that jump to it, can it be deleted.
    return [*(f":{chain} - [0:0]" for chain in owned), *rules, *(f"-X {chain}" for chain in owned)]


def _clear_rules() -> None:
    for program in ("iptables", "ip6tables"):
        for table in ("raw", "mangle", "nat", "filter") if shutil.which(program) else ():
            dump = subprocess.run([f"{program}-save", "-t", table], capture_output=True, text=True, check=False)
            lines = removal(dump.stdout)
            if lines:
                _restore(table, lines, program=program)


def restore_sysctls(saved: Path) -> None:
    """Put back the kernel settings that `set_up` and the kubelet changed."""
    if saved.exists():
        for name, value in json.loads(saved.read_text()).items():
            _sysctl(name).write_text(value)
        saved.unlink()


def tear_down() -> None:
    """Remove the bridge, the pods' ends on it and every rule; right after a hard stop too."""
    if not shutil.which("ip"):  # then nothing was ever set up here
        return
    if any(link["ifname"] == BRIDGE for link in _links()):
        for member in json.loads(_ip("-json", "link", "show", "master", BRIDGE) or "[]"):
            _ip("link", "delete", member["ifname"], check=False)  # may go by itself with its namespace
        _ip("link", "delete", BRIDGE)
    _clear_rules()
