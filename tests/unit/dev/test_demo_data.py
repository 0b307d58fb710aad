"""Where the demo puts its base model and pictures: never where something else lies."""

from __future__ import annotations

import pytest
import yaml

from darkroom_api.uris import S3Location, parse_s3
from dev.cluster.console import ClusterError
from dev.cluster.full import State
from dev.cluster.storage import Endpoint
from dev.demo.data import first_usable, named_by_content
from dev.demo.site import EXAMPLE, Site

STATE = State("/kubeconfig", "registry:5000", Endpoint("https://s3.example.com", "key", "secret"), "lab", 0.0)


def test_the_hash_stands_before_the_ending() -> None:
    assert str(named_by_content(parse_s3("s3://lab/a.b/robot"), "0123456789ab")) == "s3://lab/a.b/robot-01234567"
    assert (
        str(named_by_content(parse_s3("s3://lab/tiny.safetensors"), "0123456789"))
        == "s3://lab/tiny-01234567.safetensors"
    )


def test_the_plain_name_wins_where_it_is_usable() -> None:
    plain, hashed = S3Location("b", "x"), S3Location("b", "x-0")
    assert first_usable((plain, hashed), lambda _: True) == plain
    assert first_usable((plain, hashed), lambda location: location == hashed) == hashed
    with pytest.raises(ClusterError, match="s3://b/x and s3://b/x-0: other content lies there"):
        first_usable((plain, hashed), lambda _: False)


def test_on_the_local_cluster_the_example_is_applied_as_it_stands() -> None:
    site = Site.of(STATE, is_existing=False, environment={})
    written = yaml.safe_load(EXAMPLE.read_text())
    assert site.example()["spec"]["dataset"] == written["spec"]["dataset"]
    assert site.example()["spec"]["baseModel"] == written["spec"]["baseModel"]
    assert site.example()["spec"]["output"] == written["spec"]["output"]


def test_in_somebodys_store_everything_lies_below_one_folder_of_one_bucket() -> None:
    spec = Site.of(STATE, is_existing=True, environment={}).example()["spec"]
    uris = [spec[field]["uri"] for field in ("baseModel", "dataset", "output")]
    assert all(uri.startswith("s3://lab/darkroom-demo/") for uri in uris)
    assert len(set(uris)) == 3
    assert spec["storage"]["endpointURL"] == "https://s3.example.com"
