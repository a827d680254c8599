"""The C++ client's library, loaded through ctypes. Its header, client/cpp/c_api.h, specifies the functions."""

from __future__ import annotations

import ctypes
import functools
import os
import warnings
from typing import Any

from hookline import _security
from hookline.errors import HooklineError, make_error

ABI_VERSION = 3

OK, END, TIMEOUT, ERROR = 0, 1, 2, 3
CAPTURE, CAPTURE_STREAM, READ_RECORDING = 0, 1, 2

_CODES = (
    "OK CANCELLED UNKNOWN INVALID_ARGUMENT DEADLINE_EXCEEDED NOT_FOUND ALREADY_EXISTS PERMISSION_DENIED "
    "RESOURCE_EXHAUSTED FAILED_PRECONDITION ABORTED OUT_OF_RANGE UNIMPLEMENTED INTERNAL UNAVAILABLE DATA_LOSS "
    "UNAUTHENTICATED"
).split()


class Error(ctypes.Structure):
    """`hookline_error`."""

    _fields_ = [
        ("code", ctypes.c_int32),
        ("field", ctypes.c_char * 508),
        ("message", ctypes.c_char * 3576),
        ("retry_delay_ms", ctypes.c_int64),
    ]

    def exception(self) -> HooklineError:
        code = _CODES[self.code] if 0 < self.code < len(_CODES) else "UNKNOWN"
        error = make_error(
            code, self.message.decode(errors="replace"), field=self.field.decode(errors="replace") or None
        )
        error.retry_after = self.retry_delay_ms / 1000 if self.retry_delay_ms else None
        return error


class Batch(ctypes.Structure):
    """`hookline_batch`."""

    _fields_ = [
        ("rows", ctypes.c_int64),
        ("data", ctypes.POINTER(ctypes.c_void_p)),
        ("sequence", ctypes.c_void_p),
        ("position", ctypes.c_void_p),
        ("token_id", ctypes.c_void_p),
    ]


class Security(ctypes.Structure):
    """`hookline_security`."""

    _fields_ = [
        ("tls", ctypes.c_int32),
        ("ca_path", ctypes.c_char_p),
        ("cert_path", ctypes.c_char_p),
        ("key_path", ctypes.c_char_p),
        ("token", ctypes.c_char_p),
    ]

    @classmethod
    def of(cls, security: _security.Security) -> Security:
        tls = security.tls
        paths = (None, None, None) if tls is None else (tls.ca, tls.cert, tls.key)
        return cls(
            tls is not None, *(None if path is None else os.fsencode(path) for path in paths), security.token.encode()
        )


_HANDLE = ctypes.c_void_p
_BYTES = ctypes.POINTER(ctypes.c_void_p)
_SIZE = ctypes.POINTER(ctypes.c_size_t)
_ERROR = ctypes.POINTER(Error)
_FUNCTIONS = {
    "client_connect_securely": [
        ctypes.c_char_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.POINTER(Security),
        ctypes.POINTER(_HANDLE),
        _ERROR,
    ],
    "client_free": [_HANDLE],
    "capture_start": [_HANDLE, ctypes.c_int32, ctypes.c_char_p, ctypes.c_size_t, ctypes.POINTER(_HANDLE), _ERROR],
    "capture_started": [_HANDLE, ctypes.c_int64, _BYTES, _SIZE, _ERROR],
    "capture_submit": [_HANDLE, ctypes.POINTER(Batch), _ERROR],
    "capture_wait": [_HANDLE, ctypes.c_int64, ctypes.POINTER(ctypes.c_int64), _ERROR],
    "capture_progress": [_HANDLE, ctypes.POINTER(ctypes.c_int64), ctypes.POINTER(ctypes.c_int64)],
    "capture_token_text": [_HANDLE, ctypes.c_uint32, _BYTES, _SIZE],
    "capture_resume_token": [_HANDLE, ctypes.c_char_p, ctypes.c_size_t],
    "capture_resume": [_HANDLE, ctypes.c_char_p, ctypes.c_size_t, _ERROR],
    "capture_write_tokens": [_HANDLE, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, _ERROR],
    "capture_finish_tokens": [_HANDLE],
    "capture_summary": [_HANDLE, _BYTES, _SIZE],
    "capture_cancel": [_HANDLE],
    "capture_free": [_HANDLE],
}
_RESULTS = {
    "client_free": None,
    "capture_finish_tokens": None,
    "capture_cancel": None,
    "capture_free": None,
    "capture_progress": None,
    "capture_resume_token": ctypes.c_size_t,
}


def path() -> str | None:
    """Returns the library's path: HOOKLINE_CLIENT_LIBRARY in the environment (empty: none), or else the file beside
    this one."""
    named = os.environ.get("HOOKLINE_CLIENT_LIBRARY")
    if named is not None:
        return named or None
    beside = os.path.join(os.path.dirname(os.path.abspath(__file__)), "libhookline_client.so")
    return beside if os.path.exists(beside) else None


@functools.cache
def load(library_path: str) -> Any:
    """Returns the library's functions, without their prefix. OSError if it cannot be loaded or has another version."""
    library = ctypes.CDLL(library_path)

    class Functions:
        pass

    functions: Any = Functions()
    version = library.hookline_abi_version
    version.argtypes, version.restype = [], ctypes.c_int32
    if version() != ABI_VERSION:
        raise OSError(f"{library_path} has version {version()} of the C interface; this package needs {ABI_VERSION}")
    for name, arguments in _FUNCTIONS.items():
        function = getattr(library, "hookline_" + name)
        function.argtypes = arguments
        function.restype = _RESULTS.get(name, ctypes.c_int32)
        setattr(functions, name, function)
    return functions


def find(receiver: str) -> Any:
    """Returns the functions for `receiver` "native" or "auto"; None for "grpc", and for "auto" if there is
    no library."""
    where = None if receiver == "grpc" else path()
    if where is not None:
        try:
            return load(where)
        except OSError as error:
            if receiver == "native" or "HOOKLINE_CLIENT_LIBRARY" in os.environ:
                raise
            warnings.warn(f"rows are received through grpcio: {error}; install hookline again", stacklevel=4)
            return None
    if receiver == "native":
        raise OSError(
            "receiver: the C++ client's library is not installed; install the package where a C++ compiler and gRPC "
            "are, or set HOOKLINE_CLIENT_LIBRARY to libhookline_client.so"
        )
    return None
