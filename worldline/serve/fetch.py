"""Fetches a picture from the web without ever reaching a machine that only this one can reach.

A name is looked up once, every address that it has must be public, and the connection goes to one of exactly those
addresses, so that a second look-up cannot lead elsewhere. Each redirect is checked in the same way.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from urllib.parse import SplitResult, urljoin, urlsplit

from worldline.serve.refusals import Refused, bad

REDIRECTS = 3
PATIENCE = 10.0  # seconds for a look-up, a connection or a piece
WHOLE = 30.0  # seconds for all of it
PIECE = 1 << 16
PORTS = {"http": 80, "https": 443}


def fetch(url: str, most: int) -> bytes:
    """Up to `most` bytes from a public address; raises Refused for any other, and for all that goes wrong."""
    until = time.monotonic() + WHOLE
    for _ in range(REDIRECTS + 1):
        place = _checked(url)
        try:
            found = _read(_Pinned(place), place, most, until)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _refused(f"cannot be fetched ({type(error).__name__})") from None
        if isinstance(found, bytes):
            return found
        url = urljoin(url, found)
    raise _refused(f"leads through more than {REDIRECTS} redirects")


def _refused(what: str) -> Refused:
    return bad(f"image_url: the address {what}", "image_url", "invalid_image_url")


def _checked(url: str) -> SplitResult:
    try:
        place = urlsplit(url)
        usual = place.scheme in PORTS and place.hostname and (place.port or PORTS[place.scheme]) == PORTS[place.scheme]
    except ValueError:
        usual = None
    if not usual or place.username is not None or not url.isascii():
        raise _refused("is not a plain http or https one")
    return place


def public_address(host: str, port: int) -> str:
    """One of the addresses of a host; raises Refused unless all of them are public."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise _refused("has a name that is not known") from None
    addresses = [str(entry[4][0]).partition("%")[0] for entry in found]
    if not addresses or not all(is_public(address) for address in addresses):
        raise _refused("is not public")
    return addresses[0]


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open internet, also where it is wrapped into another."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is not None:
            return is_public(str(inner))
        if ip in ipaddress.ip_network("64:ff9b::/96"):  # NAT64
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
    return ip.is_global and not ip.is_multicast


class _Pinned(http.client.HTTPConnection):
    """A connection to an address that was checked, whatever the name means a moment later."""

    def __init__(self, place: SplitResult) -> None:
        assert place.hostname is not None
        self.secure, port = place.scheme == "https", PORTS[place.scheme]
        self.address = public_address(place.hostname, port)
        super().__init__(place.hostname, port, timeout=PATIENCE)

    def connect(self) -> None:
        self.sock = socket.create_connection((self.address, self.port), PATIENCE)
        if self.secure:
            self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self.host)


def _read(connection: _Pinned, place: SplitResult, most: int, until: float) -> bytes | str:
    """The body, or where a redirect leads."""
    try:
        path = (place.path or "/") + (f"?{place.query}" if place.query else "")
        connection.request("GET", path, headers={"accept": "image/*", "user-agent": "worldline"})
        with connection.getresponse() as answer:
            if answer.status in (301, 302, 303, 307, 308):
                return answer.getheader("location") or ""
            if answer.status != 200:
                raise _refused(f"answers {answer.status}")
            held = bytearray()
            while piece := answer.read1(PIECE):
                held += piece
                if len(held) > most:
                    raise _refused(f"holds more than {most} bytes")
                if time.monotonic() > until:
                    raise _refused("is too slow")
            return bytes(held)
    finally:
        connection.close()
