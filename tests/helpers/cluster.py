"""Several workers on this machine."""

import contextlib
import json
import socket


def clusters(count: int) -> list[str]:
    """`TF_CONFIG` of each of `count` workers on loopback."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for held in sockets:
            held.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{held.getsockname()[1]}" for held in sockets]
    tasks = ({"type": "worker", "index": index} for index in range(count))
    return [json.dumps({"cluster": {"worker": addresses}, "task": task}) for task in tasks]
