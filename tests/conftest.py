"""No test leaves this machine (E6), here or in a process that it starts."""

import ipaddress
import socket

import pytest


class LeftTheMachineError(RuntimeError):
    """Not an `OSError`, which code under test may take for a network that is down."""


def _check(host) -> None:
    host = host.decode() if isinstance(host, bytes) else host
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host in (None, "", "localhost")
    if not local:
        raise LeftTheMachineError(f"a test asked for {host!r}; tests run with the network off")


@pytest.fixture(scope="session", autouse=True)
def network_off():
    def guarded(original):
        def connect(self, address):
            if self.family != socket.AF_UNIX:
                _check(address[0])
            return original(self, address)

        return connect

    def look_up(host, *args, original=socket.getaddrinfo, **options):
        _check(host)
        return original(host, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex"):
            patch.setattr(socket.socket, name, guarded(getattr(socket.socket, name)))
        patch.setattr(socket, "getaddrinfo", look_up)
        # For processes that tests start: a proxy that is not there.
        for scheme in ("http", "https", "ftp", "all"):
            patch.setenv(f"{scheme}_proxy", "http://127.0.0.1:9")
            patch.delenv(f"{scheme}_proxy".upper(), raising=False)
        patch.setenv("no_proxy", "localhost,127.0.0.1")
        patch.delenv("NO_PROXY", raising=False)
        yield
