"""The exceptions that this package raises for what a server or a connection reports."""

from __future__ import annotations

import re
from typing import Any

import grpc

from hookline import _protocol
from hookline._text import escaped

# Matches `FIELD: ...` at the head of a message, since a server or proxy may strip the details beside the status.
_FIELD_PREFIX = re.compile(r"""([a-z_][a-z0-9_]*(?:\.[a-z_][a-z0-9_]*|\[[^\]]*\])*): """)

# A client that waits longer than this looks like one that hangs.
_MAX_RETRY_SECONDS = 3600.0


class HooklineError(Exception):
    """An error that the server or the connection reported.

    `code` is the name of the canonical code (`"INVALID_ARGUMENT"`), `message` the server's message with control
    characters escaped, `field` the path of the request field that the error is about (`"tokens.sequences[3].ids[17]"`),
    or None. `retry_after` is the number of seconds after which the server says to try again, or None.
    """

    code = "UNKNOWN"
    retry_after: float | None = None

    def __init__(self, message: str, code: str | None = None, field: str | None = None) -> None:
        # It may hold names that a server chose.
        message = escaped(message)
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code
        self.field = None if field is None else escaped(field)

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"

    def __reduce__(self) -> Any:  # data loaders pickle exceptions to pass them between processes
        return type(self), (self.message, self.code, self.field), {"retry_after": self.retry_after}


class InvalidArgumentError(HooklineError, ValueError):
    """The request is not valid; `field` says which part of it is wrong."""

    code = "INVALID_ARGUMENT"


class NotFoundError(HooklineError, LookupError):
    """The server has nothing of that name."""

    code = "NOT_FOUND"


class ResourceExhaustedError(HooklineError):
    """The request exceeds a limit of the server; the message gives the limit and what was asked for."""

    code = "RESOURCE_EXHAUSTED"


class FailedPreconditionError(HooklineError):
    """The request does not fit the server's current state, or a different model answers after a reconnect."""

    code = "FAILED_PRECONDITION"


class UnavailableError(HooklineError, ConnectionError):
    """No server answered, not even after all allowed reconnects."""

    code = "UNAVAILABLE"


class UnauthenticatedError(HooklineError, PermissionError):
    """The server requires a token or a certificate, which is missing or not valid."""

    code = "UNAUTHENTICATED"


class PermissionDeniedError(HooklineError, PermissionError):
    """The client lacks the role that the call needs, or what it asks for belongs to another client."""

    code = "PERMISSION_DENIED"


class InternalError(HooklineError):
    """The server failed, or sent a stream in which rows are missing, repeated, or of the wrong shape."""

    code = "INTERNAL"


class CancelledError(HooklineError):
    """The capture was closed."""

    code = "CANCELLED"


class DeadlineExceededError(HooklineError, TimeoutError):
    """The call took longer than its timeout."""

    code = "DEADLINE_EXCEEDED"


_BY_CODE = {
    error.code: error
    for error in (
        InvalidArgumentError,
        NotFoundError,
        ResourceExhaustedError,
        FailedPreconditionError,
        UnavailableError,
        UnauthenticatedError,
        PermissionDeniedError,
        InternalError,
        CancelledError,
        DeadlineExceededError,
    )
}


def make_error(code: str, message: str, details: bytes | None = None, field: str | None = None) -> HooklineError:
    """Makes the exception for a status. `details` is a serialized google.rpc.Status (`grpc-status-details-bin`)."""
    if details and field is None:
        field = _field_of(details)
    if field is None and code == "INVALID_ARGUMENT":
        match = _FIELD_PREFIX.match(message)
        field = match.group(1) if match else None
    error = _BY_CODE.get(code, HooklineError)(message, code, field)
    error.retry_after = _retry_delay(details) if details else None
    return error


def from_rpc_error(error: Any) -> HooklineError:
    """Makes the exception for a grpc.RpcError (sync or aio)."""
    code = error.code() if callable(getattr(error, "code", None)) else grpc.StatusCode.UNKNOWN
    details = None
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            details = value
    return make_error((code or grpc.StatusCode.UNKNOWN).name, error.details() or "", details)


def _retry_delay(details: bytes) -> float | None:
    try:
        for detail in _protocol.Status.FromString(details).details:
            if detail.type_url.endswith("google.rpc.RetryInfo"):
                delay = _protocol.RetryInfo.FromString(detail.value).retry_delay
                return float(min(max(0.0, delay.seconds + delay.nanos / 1e9), _MAX_RETRY_SECONDS))
    except Exception:  # foreign bytes in a trailer must not hide the error itself
        return None
    return None


def _field_of(details: bytes) -> str | None:
    try:
        for detail in _protocol.Status.FromString(details).details:
            if detail.type_url.endswith("google.rpc.BadRequest"):
                for violation in _protocol.BadRequest.FromString(detail.value).field_violations:
                    return str(violation.field)
    except Exception:  # foreign bytes in a trailer must not hide the error itself
        return None
    return None
