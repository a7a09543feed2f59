"""A local server that speaks enough of the Messages API to test generation: JSON, streams, errors, dropped connections."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import anthropic


@dataclass
class Reply:
    """
    What the server does with one request.

    :param kind: ``text``, ``error``, ``drop`` (before any byte), ``drop_midway``, ``stream_error``, ``stream_ends``, ``html``,
        ``wrong_body``, ``page`` (HTML with status 200), ``no_json``, ``no_content``, ``odd_usage``.
    """

    kind: str = "text"
    text: str = ""
    stop_reason: str = "end_turn"
    status: int = 200
    error_type: str = ""
    details: dict[str, Any] | None = None
    headers: dict[str, str] = field(default_factory=dict)
    refusal: str | None = None
    cache_read: int = 0


ODD: dict[str, tuple[str, bytes | dict[str, Any]]] = {
    "wrong_body": ("application/json", b'{"hello": "world"}'),
    "page": ("text/html", b"<html>Log in</html>"),
    "no_json": ("application/json", b'{"id": "msg_1", "content": ['),
    "no_content": ("application/json", {"content": None}),
    "odd_usage": ("application/json", {"usage": {"input_tokens": "many"}}),
}
"""Bodies with status 200 that are no messages: bytes, or what replaces parts of a message."""


def error(status: int, error_type: str, **headers: str) -> Reply:
    """An error reply that asks to be retried after 10 ms."""
    return Reply("error", status=status, error_type=error_type, headers={"retry-after-ms": "10"} | headers)


@dataclass
class FakeAPI:
    """A running server: ``replies`` are used up in order, ``requests`` are what came."""

    url: str
    replies: list[Reply]
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def client(self) -> anthropic.Anthropic:
        """A client of this server, with a key of its own."""
        return anthropic.Anthropic(api_key="test-key", base_url=self.url, max_retries=0)


def message(reply: Reply, model: str, text: str | None = None) -> dict[str, Any]:
    """The body of an answer."""
    usage = {
        "input_tokens": 1200,
        "output_tokens": 800,
        "cache_read_input_tokens": reply.cache_read,
        "cache_creation_input_tokens": 6000,
    }
    body: dict[str, Any] = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [{"type": "text", "text": reply.text if text is None else text}],
        "stop_reason": reply.stop_reason,
        "stop_sequence": None,
        "usage": usage,
    }
    if reply.refusal:
        body["stop_details"] = {"type": "refusal", "category": reply.refusal}
    return body


def events(reply: Reply, model: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The events of a streamed answer."""
    start = message(reply, model, "") | {"content": [], "stop_reason": None}
    yield "message_start", {"type": "message_start", "message": start}
    yield "content_block_start", {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    half = len(reply.text) // 2
    for part in (reply.text[:half], reply.text[half:]):
        yield "content_block_delta", {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": part}}
        if reply.kind == "drop_midway":
            raise ConnectionResetError
        if reply.kind == "stream_error":
            yield "error", {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
            return
        if reply.kind == "stream_ends":
            return
    yield "content_block_stop", {"type": "content_block_stop", "index": 0}
    delta = {"stop_reason": reply.stop_reason, "stop_sequence": None}
    yield "message_delta", {"type": "message_delta", "delta": delta, "usage": {"output_tokens": 800}}
    yield "message_stop", {"type": "message_stop"}


@contextmanager
def fake_api(*replies: Reply) -> Iterator[FakeAPI]:
    """Serve ``replies`` on a free local port."""
    api = FakeAPI("", list(replies))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            api.requests.append(body)
            api.headers.append({key.lower(): value for key, value in self.headers.items()})
            reply = api.replies.pop(0) if api.replies else error(400, "invalid_request_error")
            if reply.kind == "drop":
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
            elif reply.kind == "error":
                problem = {"type": reply.error_type, "message": f"no: {reply.error_type}"}
                if reply.details:
                    problem["details"] = reply.details  # type: ignore[assignment]
                self.send(reply.status, {"type": "error", "error": problem, "request_id": "req_1"}, reply.headers)
            elif reply.kind == "html":
                self.send(502, b"<html>Bad gateway</html>", {"content-type": "text/html", "retry-after-ms": "10"})
            elif reply.kind in ODD:
                content_type, odd = ODD[reply.kind]
                data = odd if isinstance(odd, bytes) else message(reply, body["model"]) | odd
                self.send(200, data, {"content-type": content_type})
            elif body.get("stream"):
                self.stream(reply, body["model"])
            else:
                self.send(200, message(reply, body["model"]), reply.headers)

        def send(self, status: int, body: Any, headers: dict[str, str]) -> None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for key, value in ({"content-type": "application/json", "request-id": "req_1"} | headers).items():
                self.send_header(key, value)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def stream(self, reply: Reply, model: str) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("transfer-encoding", "chunked")
            self.send_header("request-id", "req_1")
            self.end_headers()
            try:
                for name, data in events(reply, model):
                    chunk = f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
                    self.wfile.flush()
                self.wfile.write(b"0\r\n\r\n")
            except ConnectionResetError:
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    api.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
