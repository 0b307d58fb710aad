from __future__ import annotations

import pytest
from botocore.exceptions import (
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    ReadTimeoutError,
    SSLError,
)
from s3transfer.exceptions import RetriesExceededError, S3DownloadFailedError

from darkroom_api.failures import EXIT_CODES, ExitCode
from darkroom_trainer.s3_errors import IncompleteError, NobodyError, Verdict, diagnose, failure

UNTRUSTED = "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate"
SECRET_WORDS = "StringToSign AKIDEXAMPLE wJalrXUtnFEMI"


def answer(code: str, status: int) -> ClientError:
    return ClientError(
        {
            "Error": {"Code": code, "Message": SECRET_WORDS},
            "ResponseMetadata": {
                "HTTPStatusCode": status,
                "RequestId": "",
                "HostId": "",
                "HTTPHeaders": {},
                "RetryAttempts": 0,
            },
        },
        "PutObject",
    )


@pytest.mark.parametrize(
    ("code", "status", "verdict", "exit_code"),
    [
        ("NoSuchBucket", 404, Verdict.MISSING, 66),
        ("NoSuchKey", 404, Verdict.MISSING, 66),
        ("404", 404, Verdict.MISSING, 66),
        ("AccessDenied", 403, Verdict.DENIED, 77),
        ("InvalidAccessKeyId", 403, Verdict.DENIED, 77),
        ("SignatureDoesNotMatch", 403, Verdict.DENIED, 77),
        ("ExpiredToken", 400, Verdict.DENIED, 77),
        ("403", 403, Verdict.DENIED, 77),
        ("SlowDown", 503, Verdict.AWAY, 69),
        ("InternalError", 500, Verdict.AWAY, 69),
        ("502", 502, Verdict.AWAY, 69),
        ("RequestTimeout", 400, Verdict.AWAY, 69),
        ("TooManyRequests", 429, Verdict.AWAY, 69),
        ("ConditionalRequestConflict", 409, Verdict.AWAY, 69),
        ("NoSuchUpload", 404, Verdict.AWAY, 69),
        ("IncompleteBody", 400, Verdict.AWAY, 69),
        ("BadDigest", 400, Verdict.AWAY, 69),
        ("XAmzContentSHA256Mismatch", 400, Verdict.AWAY, 69),
        ("InvalidPart", 400, Verdict.AWAY, 69),
        ("PermanentRedirect", 301, Verdict.MISCONFIGURED, 78),
        ("AuthorizationHeaderMalformed", 400, Verdict.MISCONFIGURED, 78),
        ("PreconditionFailed", 412, Verdict.EXISTS, 70),
        ("NotImplemented", 501, Verdict.REFUSED, 70),
        ("EntityTooLarge", 400, Verdict.REFUSED, 70),
    ],
)
def test_an_answer_has_a_verdict_and_an_exit_code(code: str, status: int, verdict: Verdict, exit_code: int) -> None:
    problem = diagnose(answer(code, status))
    assert problem.verdict is verdict
    error = failure(problem, "reading s3://models/a")
    assert EXIT_CODES[error.reason] == ExitCode(exit_code)
    assert "s3://models/a" in error.message
    assert f"HTTP {status}" in error.message
    assert error.advice


@pytest.mark.parametrize(
    ("error", "verdict", "said"),
    [
        (EndpointConnectionError(endpoint_url="http://s3", error="[Errno 111] Connection refused"), "away", "refused"),
        (
            EndpointConnectionError(endpoint_url="http://s3", error="Failed to resolve 's3' ([Errno -2])"),
            "away",
            "resolved",
        ),
        (ConnectTimeoutError(endpoint_url="http://s3"), "away", "connect timeout"),
        (ReadTimeoutError(endpoint_url="http://s3"), "away", "read timeout"),
        (ConnectionResetError(104, "reset"), "away", "broke"),
        (NobodyError("HTTP 404 that is not the store's"), "away", "not the store's"),
        (S3DownloadFailedError("the ETag changed"), "away", "S3DownloadFailedError"),
        (IncompleteError("3 of 4 bytes arrived"), "away", "3 of 4 bytes"),
        (RetriesExceededError(ReadTimeoutError(endpoint_url="http://s3")), "away", "read timeout"),
        (NoCredentialsError(), "denied", "no credentials"),
        (
            SSLError(endpoint_url="https://s3", error=OSError("[SSL: CERTIFICATE_VERIFY_FAILED] x")),
            "untrusted",
            "certificate",
        ),
        (SSLError(endpoint_url="https://s3", error=OSError("EOF occurred")), "away", "broke"),
    ],
)
def test_silence_has_a_verdict(error: Exception, verdict: str, said: str) -> None:
    problem = diagnose(error)
    assert problem.verdict == verdict
    assert said in problem.said


def test_a_servers_own_words_never_reach_a_message() -> None:
    for error in (answer("SignatureDoesNotMatch", 403), answer(f"<b>{SECRET_WORDS}</b>", 400)):
        told = failure(diagnose(error), "writing s3://a/b")
        for word in SECRET_WORDS.split():
            assert word not in told.message + told.advice
