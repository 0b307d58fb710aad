"""Certificates, configuration files, ports and messages of the local cluster."""

from __future__ import annotations

import datetime
import json
import os
import random
import socket
import ssl
import tarfile
import tomllib
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography import x509

from dev.cluster import binaries, existing, full, node, storage
from dev.cluster.certificates import issue_all, pair, write_kubeconfig
from dev.cluster.components import Ports, Site, apiserver
from dev.cluster.console import ClusterError, tail
from dev.cluster.full import State
from dev.cluster.paths import Layout, cache_directory
from dev.cluster.ports import free_ports, holder, is_free
from dev.cluster.scratch import Scratch
from dev.cluster.waiting import wait_for

NOW = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
LAYOUT = Layout(data=Path("/data"), run=Path("/run/x"))


def test_a_client_and_a_server_trust_each_other(tmp_path: Path) -> None:
    issue_all(tmp_path, ["127.0.0.1"], now=datetime.datetime.now(datetime.UTC))
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(tmp_path / "ca.crt"))
    server_side.verify_mode = ssl.CERT_REQUIRED
    server_side.load_cert_chain(*pair(tmp_path, "apiserver").__dict__.values())
    client_side = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))
    client_side.load_cert_chain(*pair(tmp_path, "admin").__dict__.values())
    incoming, outgoing = (ssl.MemoryBIO(), ssl.MemoryBIO()), (ssl.MemoryBIO(), ssl.MemoryBIO())
    server = server_side.wrap_bio(*incoming, server_side=True)
    client = client_side.wrap_bio(*outgoing, server_hostname="127.0.0.1")
    for _ in range(6):
        for side, source, target in ((client, outgoing[1], incoming[0]), (server, incoming[1], outgoing[0])):
            with suppress(ssl.SSLWantReadError):
                side.do_handshake()
            target.write(source.read())
    assert client.getpeercert()
    assert "system:masters" in str(server.getpeercert())


def test_what_certificates_say(tmp_path: Path) -> None:
    issue_all(tmp_path, ["127.0.0.1", "10.244.0.1"], now=NOW)
    kubelet = x509.load_pem_x509_certificate((tmp_path / "kubelet.crt").read_bytes())
    assert kubelet.subject.rfc4514_string() == "CN=system:node:node1,O=system:nodes"
    served = x509.load_pem_x509_certificate((tmp_path / "kubelet-server.crt").read_bytes())
    names = served.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name) for name in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "10.244.0.1"]
    assert (tmp_path / "admin.key").stat().st_mode & 0o077 == 0


def test_a_kubeconfig_can_be_copied(tmp_path: Path) -> None:
    issue_all(tmp_path / "pki", ["127.0.0.1"], now=NOW)
    path = write_kubeconfig(
        tmp_path / "config",
        "https://127.0.0.1:1",
        authority=tmp_path / "pki/ca.crt",
        pair=pair(tmp_path / "pki", "admin"),
    )
    assert str(tmp_path) not in path.read_text()
    assert path.stat().st_mode & 0o077 == 0


def test_the_api_server_stays_on_loopback_without_a_node() -> None:
    alone = apiserver(Path("x"), Site(Path("/p"), Path("/d"), Ports()))
    assert "--bind-address=127.0.0.1" in alone
    with_node = apiserver(Path("x"), Site(Path("/p"), Path("/d"), Ports(), node_address="10.244.0.1"))
    assert "--advertise-address=10.244.0.1" in with_node


def test_containerds_configuration_is_valid_and_apart() -> None:
    parsed = tomllib.loads(node.containerd_config(LAYOUT))
    assert parsed["grpc"]["address"] == "/run/x/containerd/containerd.sock"
    assert parsed["plugins"]["io.containerd.grpc.v1.cri"]["netns_mounts_under_state_dir"] is True
    assert json.dumps(node.kubelet_config(LAYOUT)).count("/run/x/") == 1


def test_the_pause_image_is_an_archive_with_its_program(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"\x7fELF")
    node.pause_archive(program, tmp_path / "image.tar")
    with tarfile.open(tmp_path / "image.tar") as outer:
        manifest = json.load(outer.extractfile("manifest.json") or pytest.fail("no manifest"))
        assert manifest[0]["RepoTags"] == [node.PAUSE_IMAGE]
        with tarfile.open(fileobj=outer.extractfile("layer.tar")) as layer:
            assert layer.getmember("pause").mode == 0o755


def test_ports_are_distinct_and_free() -> None:
    ports = free_ports(20, rng=random.Random(1))
    assert len(set(ports)) == 20
    assert all(is_free("127.0.0.1", port) for port in ports)


def test_a_taken_port_is_seen_on_every_address_and_its_holder_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not is_free("127.0.0.1", port)
        assert not is_free("0.0.0.0", port)
        assert f"process {os.getpid()}:" in holder(port)
    assert is_free("127.0.0.1", port)


def test_every_port_of_the_store_is_chosen() -> None:
    argv = storage.command(
        Path("weed"), address="127.0.0.1", port=1234, data=Path("/d"), sockets=Path("/s"), buckets=("a", "b")
    )
    ports = [argument.rpartition("=")[2] for argument in argv if ".port" in argument and not argument.endswith("=0")]
    assert len(ports) == len(set(ports)) == 10
    assert "-bucket=a,b" in argv


def test_only_old_sockets_without_a_server_are_swept(tmp_path: Path) -> None:
    listening, dead = tmp_path / "seaweedfs-s3-grpc-1.sock", tmp_path / "seaweedfs-s3-grpc-2.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(listening))
        server.listen()
        with socket.socket(socket.AF_UNIX) as gone:
            gone.bind(str(dead))
        made = dead.stat().st_mtime
        storage.sweep_sockets(tmp_path, now=made + 1)
        assert dead.exists(), "it may be about to listen"
        storage.sweep_sockets(tmp_path, now=made + 3600)
        assert not dead.exists()
        assert listening.exists()


def test_the_cache_can_be_moved(tmp_path: Path) -> None:
    assert cache_directory({"DARKROOM_CACHE": str(tmp_path)}) == tmp_path
    assert cache_directory({}).name == "darkroom"


def test_a_changed_pin_is_another_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = binaries.module_directory(binaries.PAUSE)
    monkeypatch.setattr(binaries, "REPOSITORY", tmp_path)
    (tmp_path / "dev" / "pause").mkdir(parents=True)
    (tmp_path / "dev" / "pause" / "go.mod").write_text("module other\n")
    assert binaries.module_directory(binaries.PAUSE) != before


def test_unbuilt_programs_are_named_with_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DARKROOM_CACHE", str(tmp_path))
    with pytest.raises(ClusterError, match=r"kubernetes and etcd are not built yet; .*python -m dev.cluster build"):
        binaries.require_control_plane()


def test_the_state_survives_writing_and_half_a_file_is_none(tmp_path: Path) -> None:
    layout = Layout(data=tmp_path, run=tmp_path / "run")
    assert State.read(layout) is None
    state = State("/k", "r:1", storage.new_endpoint("127.0.0.1", 1), "b", 1.5)
    state.write(layout)
    assert State.read(layout) == state
    layout.state_file.write_text(layout.state_file.read_text()[:-9])
    assert State.read(layout) is None


def test_what_runs_is_found_with_another_home(tmp_path: Path) -> None:
    running = Layout(data=tmp_path / "one", run=tmp_path / "run")
    other = Layout(data=tmp_path / "two", run=tmp_path / "run")
    assert other.recorded() == other
    running.record()
    assert other.recorded() == running
    assert other.lock_file == running.lock_file


def test_a_cluster_whose_certificates_are_gone_is_not_healthy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout(data=tmp_path / "gone", run=tmp_path / "run")
    State("/k", "r:1", storage.new_endpoint("127.0.0.1", 1), "b", 1.5).write(layout)
    monkeypatch.setattr(full, "COMPONENTS", ())
    assert "its certificates cannot be read" in (full.problem(layout) or "")


def test_an_address_that_no_interface_has_yet_can_be_free() -> None:
    (port,) = free_ports(1)
    assert is_free("192.0.2.1", port)
    with socket.create_server(("0.0.0.0", port)):
        assert not is_free("192.0.2.1", port)


def test_which_cluster() -> None:
    assert existing.is_chosen({"CLUSTER": "existing"})
    assert not existing.is_chosen({})
    with pytest.raises(ClusterError, match="CLUSTER: got 'kind', allowed are 'local'"):
        existing.is_chosen({"CLUSTER": "kind"})


def test_this_machines_address_for_pods() -> None:
    assert existing.reachable_address("https://127.0.0.1:1", {"DARKROOM_HOST_ADDRESS": "127.0.0.2"}) == "127.0.0.2"
    for address in ("fc00:f853::1", "192.0.2.1"):
        with pytest.raises(ClusterError, match=f"DARKROOM_HOST_ADDRESS: got '{address}', allowed is an IPv4 address"):
            existing.reachable_address("https://127.0.0.1:1", {"DARKROOM_HOST_ADDRESS": address})
    with pytest.raises(ClusterError, match="IPv6 is not supported"):
        existing.reachable_address("https://[fc00:f853::1]:6443", {})
    with pytest.raises(ClusterError, match="DARKROOM_HOST_ADDRESS"):
        existing.reachable_address("https://127.0.0.1:1", {})


@pytest.mark.parametrize("name", ["KUBECONFIG", "DARKROOM_REGISTRY"])
def test_an_existing_cluster_needs_its_variables(tmp_path: Path, name: str) -> None:
    environment = {"KUBECONFIG": "/k", "DARKROOM_REGISTRY": "r:1"}
    del environment[name]
    with pytest.raises(ClusterError, match=f"CLUSTER=existing needs {name}"):
        existing.up(Layout(tmp_path, tmp_path / "run"), environment)


def test_a_log_is_read_from_its_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert "no log" in tail(log)
    log.write_text("".join(f"line {index}\n" for index in range(20000)))
    assert tail(log, lines=2) == "    line 19998\n    line 19999"


def test_a_killed_owners_directory_is_swept_and_a_living_ones_is_not(tmp_path: Path) -> None:
    living = Scratch(tmp_path)
    dead = tmp_path / "99-dead"
    dead.mkdir()
    (dead / "lock").touch()
    third = Scratch(tmp_path)
    assert living.path.exists()
    assert not dead.exists()
    living.remove()
    third.remove()
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_waiting_ends_at_the_deadline_and_when_it_is_pointless() -> None:
    with pytest.raises(ClusterError, match="the moon is blue: not so after 0 s"):
        wait_for(lambda: False, "the moon is blue", timeout=0)

    def pointless() -> None:
        raise ClusterError("it has ended")

    with pytest.raises(ClusterError, match="it has ended"):
        wait_for(lambda: False, "never", timeout=60, check=pointless)
