"""An HTTP server on this machine for as long as a test needs it."""

import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    """Answers whole, and writes nothing to the log."""

    protocol_version = "HTTP/1.1"

    def send(self, status, headers, body):
        self.send_response(status)
        # Closed after each answer: else a stub that is gone would go on to answer who knows it.
        for name, value in (headers | {"Content-Length": len(body), "Connection": "close"}).items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.close_connection = True

    def log_message(self, *_):
        pass


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextmanager
def serving(handler):
    """The address at which a class of Handler answers."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    # Half a second by default, which every test that stops a server would wait for.
    poll = {"poll_interval": 0.01}
    thread = threading.Thread(target=server.serve_forever, kwargs=poll, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
