"""The server never lets itself be sent to a place that only it can reach."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from worldline.serve import fetch as module
from worldline.serve.fetch import fetch, is_public
from worldline.serve.refusals import Refused

PUBLIC = "93.184.215.14"


class Canary(http.server.BaseHTTPRequestHandler):
    """Answers what its path says, and notes that it was reached."""

    def do_GET(self) -> None:
        self.server.seen.append((self.headers["host"], self.path))  # type: ignore[attr-defined]
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("location", self.path[4:])
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"x" * int(self.path[1:]))

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A small internet: names with addresses, and a connection to PUBLIC that arrives at the canary."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Canary)
    server.seen = []  # type: ignore[attr-defined]
    server.names = {"good.example": [PUBLIC], "inside.example": ["10.0.0.1"], "mixed.example": [PUBLIC, "127.0.0.1"]}  # type: ignore[attr-defined]
    server.reached = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def look_up(host: str, port: int, **_: Any) -> list[Any]:
        try:
            addresses = [str(module.ipaddress.ip_address(host))]
        except ValueError:
            addresses = server.names.get(host)  # type: ignore[attr-defined]
        if not addresses:
            raise OSError("unknown")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    def connect(address: tuple[str, int], timeout: float) -> socket.socket:
        server.reached.append(address)  # type: ignore[attr-defined]
        assert address == (PUBLIC, 80)
        wire = socket.socket()
        wire.settimeout(timeout)
        wire.connect(server.server_address)
        return wire

    monkeypatch.setattr(module.socket, "getaddrinfo", look_up)
    monkeypatch.setattr(module.socket, "create_connection", connect)
    yield server
    server.shutdown()
    thread.join(60)
    server.server_close()


def test_a_public_address_is_fetched_also_through_a_redirect(web: Any) -> None:
    assert fetch("http://good.example/5", 10) == b"xxxxx"
    assert fetch("http://good.example/to//7", 10) == b"x" * 7
    assert web.seen == [("good.example", "/5"), ("good.example", "/to//7"), ("good.example", "/7")]


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/5",
        "http://127.1/5",
        "http://[::1]/5",
        "http://[::ffff:10.0.0.1]/5",
        "http://169.254.169.254/latest/meta-data",
        "http://inside.example/5",
        "http://mixed.example/5",
        "http://unknown.example/5",
        "http://good.example:22/5",
        "http://user:password@good.example/5",
        "ftp://good.example/5",
        "file:///etc/passwd",
        "http:///5",
        "http://good.example/100",
        "http://good.example/to/http://inside.example/5",
        "http://good.example/to/http://127.0.0.1/5",
        "http://good.example/to/file:///etc/passwd",
        "http://good.example/to//to//to//to//to//5",
        "http://good.example\\@127.0.0.1/5",
        "http://g\u00f6od.example/5",
    ],
)
def test_any_other_is_refused_and_never_reached(web: Any, url: str) -> None:
    with pytest.raises(Refused) as refused:
        fetch(url, 10)
    assert refused.value.status == 400
    assert {address for address, _ in web.reached} <= {PUBLIC}


def test_a_name_that_changes_its_mind_leads_nowhere_else(web: Any) -> None:
    """The address that was checked is the one that is connected to: a second look-up never happens."""
    looked: list[str] = []
    plain = module.socket.getaddrinfo

    def rebinding(host: str, port: int, **more: Any) -> list[Any]:
        looked.append(host)
        web.names["good.example"] = ["127.0.0.1"] if len(looked) > 1 else [PUBLIC]
        return list(plain(host, port, **more))

    module.socket.getaddrinfo = rebinding  # type: ignore[assignment]
    try:
        assert fetch("http://good.example/3", 10) == b"xxx"
    finally:
        module.socket.getaddrinfo = plain
    assert looked == ["good.example"]


@pytest.mark.parametrize(
    ("address", "public"),
    [(address, True) for address in (PUBLIC, "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "64:ff9b::5db8:d70e")]
    + [(address, False) for address in (
        "0.0.0.0", "100.64.0.1", "192.168.1.1", "172.16.0.1", "224.0.0.1", "255.255.255.255", "::", "fe80::1",
        "fc00::1", "ff02::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::",
    )],
)  # fmt: skip
def test_what_is_public(address: str, public: bool) -> None:
    assert is_public(address) is public
