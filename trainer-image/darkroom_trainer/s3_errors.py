"""What an error of the object store means: whether to wait, and else which failure the user sees.

Only error codes, HTTP statuses and addresses get into a message. A server's own words may carry signatures or
whatever stands in front of the store, so they never leave this module.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
    ReadTimeoutError,
    SSLError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError
from s3transfer.exceptions import RetriesExceededError, S3DownloadFailedError

from darkroom_api.failures import FailureReason
from darkroom_trainer.errors import RunError

STORE_ERRORS: Final = (
    BotoCoreError,
    ClientError,
    RetriesExceededError,
    S3DownloadFailedError,  # the object was replaced while it travelled
    ConnectionError,
    TimeoutError,
)
"""Everything that a call to the store may raise; anything else is a bug."""


NO_SUCH_UPLOAD: Final = "NoSuchUpload"


class OurError(ConnectionError):
    """The store seems away in a way that botocore has no name for; the text is ours and safe to show."""


class IncompleteError(OurError):
    """What arrived is not what was sent."""


class NobodyError(OurError):
    """Something answered in the store's place, such as an ingress whose backend is away."""


class Verdict(StrEnum):
    """What to do about an error."""

    AWAY = "away"
    """Wait and try again."""
    MISSING = "missing"
    DENIED = "denied"
    MISCONFIGURED = "misconfigured"
    UNTRUSTED = "untrusted"
    """The endpoint's certificate is not one we trust."""
    EXISTS = "exists"
    """A condition of the request failed: If-None-Match."""
    REFUSED = "refused"
    """The store will not do it, and asking again will not help."""


@dataclass(frozen=True)
class Problem:
    """An error of the store, judged."""

    verdict: Verdict
    said: str
    """What happened, in words that are safe to show."""


_CODES: Final[dict[str, Verdict]] = {
    **dict.fromkeys(("NoSuchBucket", "NoSuchKey", "NotFound"), Verdict.MISSING),
    **dict.fromkeys(
        (
            "AccessDenied",
            "AccountProblem",
            "AllAccessDisabled",
            "ExpiredToken",
            "Forbidden",
            "InvalidAccessKeyId",
            "InvalidSecurity",
            "InvalidToken",
            "RequestTimeTooSkewed",
            "SignatureDoesNotMatch",
            "TokenRefreshRequired",
            "Unauthorized",
        ),
        Verdict.DENIED,
    ),
    **dict.fromkeys(
        (
            "BandwidthLimitExceeded",
            "ConditionalRequestConflict",
            "InternalError",
            "OperationAborted",
            "RequestTimeout",
            "ServiceUnavailable",
            "SlowDown",
            "Throttling",
            "ThrottlingException",
            "TooManyRequests",
        ),
        Verdict.AWAY,
    ),
    # Damage on the way: what was sent is good and goes again.
    **dict.fromkeys(("BadDigest", "IncompleteBody", "InvalidPart", "XAmzContentSHA256Mismatch"), Verdict.AWAY),
    # The upload whose completion lost its answer is complete: sent afresh it ends the same. See `Store.abort_uploads`
    # for the one place where this is no news at all.
    NO_SUCH_UPLOAD: Verdict.AWAY,
    **dict.fromkeys(
        (
            "AuthorizationHeaderMalformed",
            "IllegalLocationConstraintException",
            "InvalidBucketName",
            "PermanentRedirect",
            "TemporaryRedirect",
        ),
        Verdict.MISCONFIGURED,
    ),
    "PreconditionFailed": Verdict.EXISTS,
}
_STATUSES: Final[dict[int, Verdict]] = {
    301: Verdict.MISCONFIGURED,
    307: Verdict.MISCONFIGURED,
    308: Verdict.MISCONFIGURED,
    401: Verdict.DENIED,
    403: Verdict.DENIED,
    404: Verdict.MISSING,
    408: Verdict.AWAY,
    409: Verdict.AWAY,
    412: Verdict.EXISTS,
    429: Verdict.AWAY,
    501: Verdict.REFUSED,
}
_PLAIN_CODE: Final = re.compile(r"[A-Za-z][A-Za-z0-9.]{0,63}")


def diagnose(error: BaseException) -> Problem:
    """Judge an error that a call to the store raised."""
    if isinstance(error, RetriesExceededError) and isinstance(error.last_exception, Exception):
        return diagnose(error.last_exception)
    if isinstance(error, ClientError):
        return _answered(error)
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return Problem(Verdict.DENIED, "there are no credentials")
    if isinstance(error, SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return Problem(Verdict.UNTRUSTED, "its certificate is signed by nobody we trust")
    return Problem(Verdict.AWAY, _unanswered(error))


def code_of(error: ClientError) -> str:
    """Return the S3 code of an answer; botocore puts the status in its place if the answer has none."""
    return str(error.response.get("Error", {}).get("Code", ""))


def is_bare_missing(error: ClientError) -> bool:
    """Tell whether an answer is a 404 without an S3 code: to HEAD the usual one, to anything else not a store's."""
    return _status_of(error) == 404 and code_of(error) in {"", "404"}


def _status_of(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _answered(error: ClientError) -> Problem:
    code, status = code_of(error), _status_of(error)
    verdict = _CODES.get(code) or _STATUSES.get(status) or (Verdict.AWAY if status >= 500 else Verdict.REFUSED)
    named = code if _PLAIN_CODE.fullmatch(code) else "an unknown error"
    return Problem(verdict, f"{named} (HTTP {status})" if status else named)


def _unanswered(error: BaseException) -> str:
    match error:
        case OurError():
            said = str(error)
        case ConnectTimeoutError():
            said = "no answer within the connect timeout"
        case ReadTimeoutError():
            said = "no answer within the read timeout"
        case EndpointConnectionError():
            said = _no_connection(str(error.kwargs.get("error", "")))
        case HTTPClientError() | BotoConnectionError() | ConnectionError():
            said = "the connection broke"
        case _:
            said = type(error).__name__
    return said


def _no_connection(cause: str) -> str:
    if "refused" in cause:
        return "connection refused"
    if re.search(r"resol|getaddrinfo|not known|No address", cause):
        return "its name cannot be resolved"
    return "no connection"


_REASONS: Final[dict[Verdict, FailureReason]] = {
    Verdict.AWAY: FailureReason.STORAGE_UNAVAILABLE,
    Verdict.MISSING: FailureReason.NOT_FOUND,
    Verdict.DENIED: FailureReason.ACCESS_DENIED,
    Verdict.MISCONFIGURED: FailureReason.INVALID_SPEC,
    Verdict.UNTRUSTED: FailureReason.STORAGE_UNAVAILABLE,
    Verdict.EXISTS: FailureReason.INTERNAL_ERROR,
    Verdict.REFUSED: FailureReason.INTERNAL_ERROR,
}
_ADVICE: Final[dict[Verdict, str]] = {
    Verdict.MISCONFIGURED: "Check storage.region, storage.endpointURL and the bucket's name against the store.",
    Verdict.UNTRUSTED: "Give the endpoint's certificate authority in storage.caBundle, or use another address.",
    Verdict.REFUSED: "Check that the store at storage.endpointURL speaks the S3 API that Darkroom needs.",
}


def failure(problem: Problem, what: str) -> RunError:
    """Make the failure that a user sees.

    Args:
        problem: The judged error.
        what: What was being done to which object, such as ``reading s3://models/a.safetensors``.
    """
    return RunError(_REASONS[problem.verdict], f"{what}: {problem.said}", advice=_ADVICE.get(problem.verdict))
