"""A line to a Redis server that takes no request with an argument above a limit, as managed servers do."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import struct
import threading
from typing import Literal

Manner = Literal["says so", "cuts the line"]
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close at once, by RST


class RequestLimit:
    """Between a client and the server at the socket file ``path``.

    most: bytes of an argument. manner: of refusing a larger one. refused: how many were.
    """

    def __init__(self, path: str, most: int, manner: Manner) -> None:
        self.path, self.most, self.manner = path, most, manner
        self.refused = 0
        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), self._handler(), bind_and_activate=True)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._server.server_address[1]}/0"

    def __enter__(self) -> RequestLimit:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(line: RequestLimit) -> type[socketserver.BaseRequestHandler]:
        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                with socket.socket(socket.AF_UNIX) as server, contextlib.suppress(OSError, ValueError):
                    server.connect(line.path)
                    threading.Thread(target=self._back, args=[server], daemon=True).start()
                    while first := self.rfile.readline():
                        command, fits = [first], True
                        for _ in range(int(first[1:])):
                            length = self.rfile.readline()
                            if int(length[1:]) > line.most:
                                fits = False
                                if line.manner == "cuts the line":
                                    line.refused += 1
                                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                                    self.connection.close()
                                    return
                            command += [length, self.rfile.read(int(length[1:]) + 2)]
                        if fits:
                            server.sendall(b"".join(command))
                        else:
                            line.refused += 1
                            self.connection.sendall(b"-ERR max request size exceeded. Limit: %d bytes\r\n" % line.most)

            def _back(self, server: socket.socket) -> None:
                with contextlib.suppress(OSError):
                    while data := server.recv(65_536):
                        self.connection.sendall(data)
                    self.connection.shutdown(socket.SHUT_RDWR)

        return Handler
