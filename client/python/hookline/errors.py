"""The exceptions that this package raises for what a server or a connection reports."""

from __future__ import annotations

import re
from typing import Any

import grpc

from hookline import _protocol
from hookline._text import escaped

# `FIELD: ...` at the head of a message, for servers or proxies that strip the details beside the status.
_FIELD_PREFIX = re.compile(r"""([a-z_][a-z0-9_]*(?:\.[a-z_][a-z0-9_]*|\[[^\]]*\])*): """)

# Nobody wants to wait for longer than that without being told.
_MAX_RETRY_SECONDS = 3600.0


class HooklineError(Exception):
    """An error as the server said it.

    `code` is the canonical code's name (`"INVALID_ARGUMENT"`), `message` the server's sentence (control characters and
    the like as escapes), `field` the path of the request field it is about (`"tokens.sequences[3].ids[17]"`), or None.
    `retry_after` is the number of seconds after which the server says to try again, or None.
    """

    code = "UNKNOWN"
    retry_after: float | None = None

    def __init__(self, message: str, code: str | None = None, field: str | None = None) -> None:
        # Names in it are a server's.
        message = escaped(message)
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code
        self.field = None if field is None else escaped(field)

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"

    def __reduce__(self) -> Any:  # exceptions cross process borders in data loaders
        return type(self), (self.message, self.code, self.field)


class InvalidArgumentError(HooklineError, ValueError):
    """The request asks for something that cannot be; `field` says which part of it."""

    code = "INVALID_ARGUMENT"


class NotFoundError(HooklineError, LookupError):
    """The server has no model or dataset of that name."""

    code = "NOT_FOUND"


class ResourceExhaustedError(HooklineError):
    """A limit of the server; the message has both numbers."""

    code = "RESOURCE_EXHAUSTED"


class FailedPreconditionError(HooklineError):
    """The request does not fit what the server does at present, or another model answers after a reconnect."""

    code = "FAILED_PRECONDITION"


class UnavailableError(HooklineError, ConnectionError):
    """No server answered, also after the reconnects that were allowed."""

    code = "UNAVAILABLE"


class UnauthenticatedError(HooklineError, PermissionError):
    """The server wants to know who is calling: a token or a certificate is missing, or not valid."""

    code = "UNAUTHENTICATED"


class PermissionDeniedError(HooklineError, PermissionError):
    """The client lacks the role that the call needs, or what it asks for belongs to another client."""

    code = "PERMISSION_DENIED"


class InternalError(HooklineError):
    """The server failed, or broke its promises about the stream: rows missing, repeated, or of another shape."""

    code = "INTERNAL"


class CancelledError(HooklineError):
    """The capture was closed."""

    code = "CANCELLED"


class DeadlineExceededError(HooklineError, TimeoutError):
    """The timeout given to the call passed."""

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
    """The exception for a status; `details` is a serialized google.rpc.Status (trailer `grpc-status-details-bin`)."""
    if details and field is None:
        field = _field_of(details)
    if field is None and code == "INVALID_ARGUMENT":
        match = _FIELD_PREFIX.match(message)
        field = match.group(1) if match else None
    error = _BY_CODE.get(code, HooklineError)(message, code, field)
    error.retry_after = _retry_delay(details) if details else None
    return error


def from_rpc_error(error: Any) -> HooklineError:
    """The exception for a grpc.RpcError (sync or aio)."""
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
