"""Servers that speak HTTP as badly as a test needs."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def sockets(talk: Callable[[socket.socket, bytes], None], read: int = 65536) -> Iterator[str]:
    """Serve each connection's first request, of at most ``read`` bytes, with ``talk``; yields the base URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def one(connection: socket.socket) -> None:
            with connection:
                try:
                    talk(connection, connection.recv(read))
                except OSError:
                    return  # the client has had enough, which is what most of these tests are about

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=one, args=(connection,), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
