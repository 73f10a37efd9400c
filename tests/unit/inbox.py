"""A store's webhook endpoint in this process, which keeps what comes."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WAIT_S = 10.0


@dataclass(frozen=True, slots=True)
class Letter:
    headers: dict[str, str]
    body: bytes

    @property
    def said(self) -> dict[str, Any]:
        said: dict[str, Any] = json.loads(self.body)
        return said


class Inbox:
    """What came in; `code` is what it answers."""

    def __init__(self) -> None:
        self.url = ""
        self.code = 204
        self.letters: list[Letter] = []
        self._changed = threading.Condition()

    def take(self, letter: Letter) -> int:
        with self._changed:
            self.letters.append(letter)
            self._changed.notify_all()
            return self.code

    def about(self, word: str) -> list[Letter]:
        return [letter for letter in self.letters if word.encode() in letter.body]

    def wait(self, word: str, count: int) -> list[Letter]:
        with self._changed:
            came: Callable[[], bool] = lambda: len(self.about(word)) >= count  # noqa: E731
            assert self._changed.wait_for(came, WAIT_S), f"{len(self.about(word))} of {count} came"
            return self.about(word)


@contextlib.contextmanager
def receiving() -> Iterator[Inbox]:
    inbox = Inbox()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            self.send_response(inbox.take(Letter(headers, body)))
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        # A burst of callbacks must not wait for a second because the backlog is five.
        request_queue_size = 128

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    inbox.url = f"http://127.0.0.1:{server.server_port}/webhooks/main"
    yield inbox
    server.shutdown()
    thread.join()
    server.server_close()
