from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import boto3.s3.transfer
import pytest
import s3transfer.manager
from boto3.s3.transfer import TransferConfig

from darkroom_api.failures import FailureReason
from darkroom_api.storage import Credentials, Storage
from darkroom_trainer.connecting import open_store, trusted_certificates
from darkroom_trainer.errors import RunError

KEYS = {"AWS_ACCESS_KEY_ID": "AKEXAMPLE", "AWS_SECRET_ACCESS_KEY": "secret-example"}
STORAGE = Storage(endpoint_url="http://127.0.0.1:18333", credentials=Credentials(secret_name="studio-s3"))


def test_the_endpoint_of_the_spec_is_the_one_that_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://elsewhere.example")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://elsewhere.example")
    store = open_store(STORAGE, KEYS)
    assert store.endpoint == "http://127.0.0.1:18333"
    url = store._client.generate_presigned_url("get_object", Params={"Bucket": "models", "Key": "a/b"})
    assert url.startswith("http://127.0.0.1:18333/models/a/b?")  # path style


@pytest.mark.parametrize("with_crt", [False, True])
def test_the_crt_client_that_ignores_endpoints_is_never_taken(with_crt: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    crt = SimpleNamespace(__version__="1.0.0", s3=SimpleNamespace(is_optimized_for_system=lambda: True))
    monkeypatch.setattr(boto3.s3.transfer, "HAS_CRT", with_crt)
    monkeypatch.setattr(boto3.s3.transfer, "awscrt", crt, raising=False)
    # What boto3 would do on its own, so that this test can fail:
    assert vars(boto3.s3.transfer)["_should_use_crt"](TransferConfig()) is with_crt
    assert isinstance(open_store(STORAGE, KEYS)._manager, s3transfer.manager.TransferManager)


def test_checksums_are_sent_only_where_s3_requires_them() -> None:
    config = vars(open_store(STORAGE, KEYS)._client.meta.config)["_user_provided_options"]
    assert config["request_checksum_calculation"] == "when_required"
    assert config["response_checksum_validation"] == "when_required"


@pytest.mark.parametrize(
    ("environ", "lacking"),
    [
        ({}, "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ({"AWS_ACCESS_KEY_ID": "AK"}, "AWS_SECRET_ACCESS_KEY"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "x"}, "AWS_ACCESS_KEY_ID"),
    ],
)
def test_a_secret_without_its_keys_is_named(environ: dict[str, str], lacking: str) -> None:
    with pytest.raises(RunError, match=rf"Secret 'studio-s3' has no value for {lacking}$") as caught:
        open_store(STORAGE, environ)
    assert caught.value.reason is FailureReason.ACCESS_DENIED


def test_a_password_in_the_address_is_not_shown() -> None:
    store = open_store(Storage(endpoint_url="http://user:hunter22@127.0.0.1:18333"), KEYS)
    assert store.endpoint == "http://127.0.0.1:18333"


def test_own_authorities_are_trusted_besides_the_usual_ones(tmp_path: Path) -> None:
    assert trusted_certificates({}) is None
    own = tmp_path / "ca.crt"
    own.write_text("-----BEGIN CERTIFICATE-----\nours\n-----END CERTIFICATE-----\n")
    joined = trusted_certificates({"AWS_CA_BUNDLE": str(own)})
    assert joined is not None
    text = Path(joined).read_text(encoding="utf-8")
    Path(joined).unlink()
    assert text.endswith(own.read_text())
    assert text.count("BEGIN CERTIFICATE") > 50
    with pytest.raises(RunError, match=r"storage\.caBundle"):
        trusted_certificates({"AWS_CA_BUNDLE": str(tmp_path / "none")})
