"""What holds for every test: one thread where several workers run, no log of TensorFlow's, and no network (E6), here or
in a process that a test starts."""

import ipaddress
import os
import signal
import socket

# All of it is read once, when TensorFlow or a BLAS is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Tracing is one thread of Python; workers that share two cores only get in each other's way with more.
    for variable in ("TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(variable, "1")

import pytest

# A job in the background (nohup, `&`, a CI runner) ignores Ctrl-C, and its children would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


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
