"""Server addresses, and the proxies between a client and its server."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping

from hookline.errors import HooklineError, UnavailableError

# The schemes of names that gRPC resolves itself.
_SCHEMES = ("dns:", "ipv4:", "ipv6:", "unix:", "unix-abstract:", "vsock:")
# The variables that gRPC reads, in this order; the first that is set counts.
_PROXY_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy")
_NO_PROXY_VARIABLES = ("no_grpc_proxy", "no_proxy")
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_.])?")
_LIKE = "it should read like localhost:7471 or [::1]:7471"


def check_address(address: str) -> None:
    """Raises ValueError unless an address is HOST:PORT, with an IPv6 address in brackets, or a name that
    gRPC resolves."""
    if not isinstance(address, str):
        raise TypeError(f"address: {type(address).__name__} is not a str; {_LIKE}")

    def wrong(why: str) -> ValueError:
        return ValueError(f"address: {address!r} {why}; {_LIKE}")

    if not address:
        raise wrong("is empty")
    if any(character.isspace() or not character.isprintable() for character in address):
        raise wrong("holds spaces or unprintable characters")
    if address.startswith(("unix:", "unix-abstract:", "vsock:")):
        return
    if "://" in address and not address.startswith("dns://"):
        raise wrong(f"begins with {address.split('://')[0]}://; leave that out")
    host, port = _split(address)
    if port is None:
        bare = host.count(":") > 1 and not host.startswith("[")
        raise wrong("is an IPv6 address without brackets" if bare else "has no port")
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        raise wrong(f"has the port {port!r}, which is not a number from 1 to 65535")
    if host.startswith("["):
        try:
            ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            raise wrong(f"has {host!r}, which is not an IPv6 address in brackets") from None
    elif not _HOST.fullmatch(host):
        raise wrong(f"has the host {host!r}" if host else "has no host")


def _split(address: str) -> tuple[str, str | None]:
    """Splits an address into host and port, without its scheme; the port is None if there is none."""
    for scheme in _SCHEMES:
        if address.startswith(scheme):
            # The name can have the form dns://AUTHORITY/NAME or dns:NAME.
            address = address[len(scheme) :]
            address = address[2:].partition("/")[2] if address.startswith("//") else address
            break
    if address.startswith("["):
        host, bracket, port = address.partition("]")
        return host + bracket, port[1:] if port.startswith(":") else None
    host, colon, port = address.rpartition(":")
    if not colon or ":" in host:
        return address, None
    return host, port


def loopback_port(address: str) -> int | None:
    """The port of an address on this machine's loopback interface; None for any other."""
    if address.startswith(("unix:", "unix-abstract:", "vsock:")):
        return None
    host, port = _split(address)
    return int(port) if port is not None and port.isdigit() and _is_loopback(host) else None


def host_and_port(address: str) -> tuple[str, str | None]:
    """Splits an address into host and port; the port is None if there is none."""
    if address.startswith(("unix:", "unix-abstract:", "vsock:")):
        return address, None
    return _split(address)


def is_name(host: str) -> bool:
    """Returns whether a host is a name that can have several addresses in DNS: neither an address nor this machine."""
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return not _is_loopback(host)
    return False


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def proxy_options(address: str) -> list[tuple[str, int]]:
    """Returns the proxy options of a channel: connections to this machine never use a proxy."""
    return [("grpc.enable_http_proxy", 0)] if loopback_port(address) is not None else []


def proxy_of(address: str, environment: Mapping[str, str] | None = None) -> tuple[str, str] | None:
    """Returns the variable that names the proxy to an address, and the proxy without its password. None if gRPC
    connects directly."""
    environment = os.environ if environment is None else environment
    if address.startswith(("unix:", "unix-abstract:", "vsock:")) or loopback_port(address) is not None:
        return None
    variable = next((name for name in _PROXY_VARIABLES if environment.get(name)), None)
    if variable is None:
        return None
    host = _split(address)[0].strip("[]")
    exempt = next((environment[name] for name in _NO_PROXY_VARIABLES if environment.get(name)), "")
    if any(part.strip() and host.endswith(part.strip()) for part in exempt.split(",")):
        return None
    return variable, re.sub(r"(?<=//)[^/@]*@", "", environment[variable])


def name_proxy(error: HooklineError, address: str) -> HooklineError:
    """Adds the proxy to an UnavailableError if the connection goes through one, since the proxy can be the cause."""
    proxy = proxy_of(address) if isinstance(error, UnavailableError) else None
    if proxy is None:
        return error
    host = _split(address)[0].strip("[]")
    return UnavailableError(
        f"{error.message} (through the proxy {proxy[1]}, which {proxy[0]} names; set no_proxy={host} to bypass it)",
        error.code,
        error.field,
    )
