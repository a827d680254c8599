"""A client's security settings: TLS, and the token that identifies the client."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Union

import grpc

from hookline import _network

_TOKEN_VARIABLE = "HOOKLINE_TOKEN"


@dataclass(frozen=True)
class Tls:
    """TLS from PEM files: `ca` of the authority that signed the server's certificate (None: the authorities that this
    machine trusts), and `cert` with `key` for a server that asks for a client's certificate."""

    ca: str | None = None
    cert: str | None = None
    key: str | None = None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ValueError("tls: a certificate and its key are given together or not at all")

    def credentials(self) -> grpc.ChannelCredentials:
        """Makes grpcio's credentials from the current contents of the files."""
        return grpc.ssl_channel_credentials(_read("ca", self.ca), _read("key", self.key), _read("cert", self.cert))


TlsArgument = Union[Tls, str, bool, None]


def _read(what: str, path: str | None) -> bytes | None:
    if path is None:
        return None
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise ValueError(f"tls: {what}: {path!r} cannot be read: {error.strerror}") from None


@dataclass(frozen=True)
class Security:
    """The security settings that `settle` made from the arguments."""

    tls: Tls | None = None
    token: str = field(default="", repr=False)

    @property
    def metadata(self) -> list[tuple[str, str]]:
        """The metadata of every call."""
        return [("authorization", f"Bearer {self.token}")] if self.token else []


def settle(address: str, tls: TlsArgument, token: str | None, has_credentials: bool) -> tuple[str, Security]:
    """Returns the address without its scheme, and the security settings that it and the arguments specify. ValueError
    if they contradict each other, or if others could read the token on its way."""
    if not isinstance(address, str):
        _network.check_address(address)  # raises the error
    scheme, separator, rest = address.partition("://")
    is_secure = separator == "://" and scheme == "grpcs"
    if separator == "://" and scheme in ("grpc", "grpcs"):
        address = rest
    if tls is False and is_secure:
        raise ValueError(f"tls: is False, but the address begins with grpcs://: {address!r}")
    if tls and separator == "://" and scheme == "grpc":
        raise ValueError(f"tls: is given, but the address begins with grpc://: {address!r}")
    if has_credentials and (tls or is_secure):
        raise ValueError("credentials: given together with TLS; use tls=hookline.Tls(...) or credentials=..., not both")
    if isinstance(tls, str):
        settled: Tls | None = Tls(ca=tls)
    elif isinstance(tls, Tls):
        settled = tls
    else:
        settled = Tls() if tls or is_secure else None
    token = os.environ.get(_TOKEN_VARIABLE, "") if token is None else token
    if any(character.isspace() or not (character.isascii() and character.isprintable()) for character in token):
        raise ValueError("token: holds spaces or unprintable characters")
    _network.check_address(address)
    stays_here = address.startswith(("unix:", "unix-abstract:")) or _network.loopback_port(address) is not None
    if token and settled is None and not has_credentials and not stays_here:
        raise ValueError(f"token: others could read it on the way to {address}; connect to grpcs://{address} (TLS)")
    return address, Security(settled, token)
