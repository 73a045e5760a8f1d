"""Connections between processes: messages that are JSON, and a relay for JAX's own."""

import contextlib
import json
import socket
import threading

STRANGER = 4096  # bytes that are read of a process before it has said which it is
LOST = 20  # seconds after which TCP gives up a machine that answers nothing


class Peer:
    """A connection, with the process at its other end once it has said which it is."""

    def __init__(self, connection: socket.socket):
        self.socket, self.index, self.silent = connection, -1, 0.0
        self.heard = False  # whether it has ever said anything
        self.at = (0, 0, "the start")  # see `Group`
        self._received, self._lock = bytearray(), threading.Lock()
        connection.settimeout(LOST)
        options = {"TCP_NODELAY": 1, "TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
        options |= {"TCP_USER_TIMEOUT": LOST * 1000}  # milliseconds
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in options.items():
            if hasattr(socket, name):  # not everywhere
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def send(self, **message) -> None:
        """Send a message; one that cannot be sent is lost with the connection, which is noticed."""
        with self._lock, contextlib.suppress(OSError):
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict] | None:
        """Return the messages that have come in; None where the connection has ended."""
        try:
            data = self.socket.recv(1 << 16)
        except OSError:
            data = b""
        self._received += data
        if b"\n" not in data:  # a long line comes in parts: it is put together once
            return None if not data or (self.index < 0 and len(self._received) > STRANGER) else []
        *lines, rest = bytes(self._received).split(b"\n")
        self._received = bytearray(rest)
        return [json.loads(line) for line in lines]


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as one:
        one.bind(("", 0))
        return one.getsockname()[1]


def relay(host: str, port: int) -> int:
    """Return a port of this machine that leads to one of another, whose end is not passed on."""
    listener = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, target: socket.socket, close: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
            if close:
                target.shutdown(socket.SHUT_WR)

    def serve() -> None:
        while True:
            near, _ = listener.accept()
            try:
                far = socket.create_connection((host, port))
            except OSError:
                near.close()  # it is not there yet: the caller tries again
                continue
            for pair in ((near, far, True), (far, near, False)):
                threading.Thread(target=pump, args=pair, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    return listener.getsockname()[1]
