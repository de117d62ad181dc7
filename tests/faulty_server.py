"""A web server on the loopback address that has the faults a test asks for."""

import re
import socket
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Faults:
    """What is wrong with a file on the server; by default nothing.

    Each of `answers` is given once, in order, before the file itself: a status, or "drop"
    (no answer at all).
    """

    body: bytes
    answers: list = field(default_factory=list)
    retry_after: str | None = None
    drop_after: int | None = None  # bytes of the body after which a connection is cut
    drops: int = 10**9  # how many connections are cut
    reset: bool = False  # cut by a reset, not by an end
    announced: int | None = None  # Content-Length, if not the true one
    ranges: bool = True  # whether Range is understood
    wrong_range: bool = False  # whether another part is sent than was asked for
    etag: str | None = '"one"'
    last_modified: str | None = None
    new_version: tuple | None = None  # (etag, body) that come after the first answer
    chunked: bool = False  # no Content-Length
    encoding: str | None = None  # a Content-Encoding that is claimed
    location: str | None = None  # where it redirects to
    pause: float = 0.0  # s before each KiB
    content_type: str = "application/octet-stream"
    seen: list = field(default_factory=list)  # (Range, If-Range) of each request


class Handler(BaseHTTPRequestHandler):
    """Answers GET from the server's `files`."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Say nothing."""

    def do_GET(self):
        faults = self.server.files.get(self.path)
        if faults is None:
            return self.plain(404)
        faults.seen.append((self.headers.get("Range"), self.headers.get("If-Range")))
        if faults.answers:
            answer = faults.answers.pop(0)
            return self.cut() if answer == "drop" else self.plain(answer, faults)
        if faults.location:
            return self.plain(302, faults)
        self.send_file(faults)
        if faults.new_version:
            faults.etag, faults.body = faults.new_version

    def plain(self, status, faults=None):
        """A status with a page."""
        page = b"<!DOCTYPE html><html>Sorry</html>"
        self.send_response(status)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(page)))
        if faults and faults.retry_after:
            self.send_header("Retry-After", faults.retry_after)
        if faults and status == 302:
            self.send_header("Location", faults.location)
        self.end_headers()
        self.wfile.write(page)

    def send_file(self, faults):
        """The file, or what is left of it."""
        body, start = faults.body, self.start(faults)
        if start is not None and start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(200 if start is None else 206)
        self.headers_of(faults, start)
        self.send_body(faults, body[start or 0 :])

    def start(self, faults):
        """The byte to begin at, if the request asks for one and may be answered so."""
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        version = self.headers.get("If-Range")
        same = version in (None, faults.etag, faults.last_modified)
        return int(asked[1]) if asked and faults.ranges and same else None

    def headers_of(self, faults, start):
        """The headers of the file or a part of it."""
        total = len(faults.body)
        if start is not None:
            shown = start + 7 if faults.wrong_range else start
            self.send_header("Content-Range", f"bytes {shown}-{total - 1}/{total}")
        if faults.etag:
            self.send_header("ETag", faults.etag)
        if faults.last_modified:
            self.send_header("Last-Modified", faults.last_modified)
        if faults.encoding:
            self.send_header("Content-Encoding", faults.encoding)
        self.send_header("Content-Type", faults.content_type)
        if faults.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            length = faults.announced if faults.announced is not None else total
            self.send_header("Content-Length", str(length - (start or 0)))
        self.end_headers()

    def send_body(self, faults, body):
        """As much of the body as is sent before the connection is cut."""
        cut = faults.drop_after is not None and faults.drops > 0
        sent = body[: faults.drop_after] if cut else body
        for place in range(0, len(sent), 1024):
            if faults.pause and self.server.stopped.wait(faults.pause):
                break
            block = sent[place : place + 1024]
            if faults.chunked:
                block = b"%x\r\n%s\r\n" % (len(block), block)
            self.wfile.write(block)
        if cut or faults.announced is not None:
            faults.drops -= 1
            return self.cut(faults.reset)
        if faults.chunked:
            self.wfile.write(b"0\r\n\r\n")

    def cut(self, reset=False):
        """End the connection."""
        self.wfile.flush()
        if reset:
            linger = b"\x01\0\0\0\0\0\0\0"  # on, 0 s: close sends a reset
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        else:
            self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True
        if reset:
            self.connection.close()


class Server(ThreadingHTTPServer):
    """Files with their faults, by path."""

    daemon_threads = True

    def handle_error(self, *_):
        """A client that went away is no news."""

    def url(self, path):
        """The address of a file."""
        return f"http://127.0.0.1:{self.server_port}{path}"

    def add(self, path, body, **faults):
        """Put a file there; returns its faults, which may be changed."""
        self.files[path] = Faults(body, **faults)
        return self.files[path]


@contextmanager
def faulty_server():
    """A running server without files."""
    server = Server(("127.0.0.1", 0), Handler)
    server.files, server.stopped = {}, threading.Event()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stopped.set()
        server.shutdown()
        server.server_close()
