"""Makes the client of a server, or of several."""

from __future__ import annotations

import os
from collections.abc import Sequence

import grpc

from hookline import _endpoints, _memory, _security
from hookline._security import TlsArgument
from hookline._sharing import Sharing
from hookline.client import Client
from hookline.many import ManyClient


def connect(
    address: str | Sequence[str] | None = None,
    *,
    tls: TlsArgument = None,
    token: str | None = None,
    endpoints: str | os.PathLike[str] | None = None,
    credentials: grpc.ChannelCredentials | None = None,
    receiver: str = "auto",
    shared_memory: bool = True,
    sharing: Sharing | None = None,
) -> Client:
    """Returns a client of the server at `address` (`"host:port"`). Nothing is sent yet.

    A list of addresses, or a file of them as batch jobs write it (`endpoints`, or `"hookline://PATH"` as address; see
    deploy/slurm), makes one client of several servers that hold the same model: a `hookline.many.ManyClient`, which
    runs each capture on all of them. A name in a list stands for all addresses that DNS has for it at that moment.
    `sharing` says how captures are divided among the servers.

    `tls`: True, or an address that begins with `grpcs://`, for a server whose certificate is signed by an authority
    that this machine trusts; the path of another authority's certificate; or `hookline.Tls`, which can also hold a
    certificate of the client.
    `token`: identifies this client to a server that has a file of clients; None: the value of HOOKLINE_TOKEN in the
    environment. It is only sent to servers on this machine or over TLS.
    `credentials`: grpcio's own credentials instead of `tls`; only the receiver "grpc" can use them.
    `receiver`: how rows are received, with the same results: "grpc" uses grpcio alone, "native" the C++ client's
    library, "auto" the library if it is found.
    `shared_memory`: whether rows come through memory shared with the server, which is several times as fast, if the
    server runs on this machine and `address` is a loopback address; otherwise they come over the wire.

    The first call also makes glibc keep freed memory mapped, which about doubles the speed of a capture;
    HOOKLINE_MALLOC=default in the environment leaves the allocator alone.
    """
    if (address is None) == (endpoints is None):
        raise TypeError("connect: pass address or endpoints, and not both")
    if receiver not in ("auto", "grpc", "native"):
        raise ValueError(f"receiver: {receiver!r} is not one of auto, grpc, native")

    def client_of(one: str) -> Client:
        settled, security = _security.settle(one, tls, token, credentials is not None)
        return Client(settled, credentials, receiver, shared_memory, security)

    addresses = _endpoints.addresses(address, endpoints, bool(tls) or credentials is not None)
    _memory.keep_freed_memory()
    if isinstance(addresses, str):
        if sharing is not None:
            raise TypeError("sharing: one server has nothing to share; leave it out, or give several addresses")
        return client_of(addresses)
    return ManyClient([client_of(one) for one in addresses], sharing or Sharing())
