"""A middleware in front of the page's server: it accepts only requests of its own page, within limits."""

from __future__ import annotations

import json
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from threading import Lock
from time import monotonic
from urllib.parse import parse_qs, urlsplit

from python_multipart.multipart import parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

_API = "/gradio_api"
_JOIN, _LISTEN, _UPLOAD = f"{_API}/queue/join", f"{_API}/queue/data", f"{_API}/upload"
# Functions outside the queue, such as Stop; Gradio refuses to run queued ones so.
_RUN = f"{_API}/run/predict"
_POSTED = (_JOIN, _RUN, _UPLOAD, f"{_API}/cancel", f"{_API}/reset")

# In bytes: of a request without upload; around an uploaded file; of all uploads in progress.
_LARGEST_REQUEST = 2**20
_AROUND_FILE = 2**14
_LARGEST_INCOMING = 200 * 2**20

# Seconds for which a question is answered without a listener: the page listens after asking, and connections break.
_PATIENCE = 5.0
_VISITORS_KNOWN = 10_000

_NOT_UNDERSTOOD = "This page does not send such a request; reload it."
_HEADERS = {"x-frame-options": "SAMEORIGIN", "x-content-type-options": "nosniff"}


class Listeners:
    """The visitors that wait for an answer, by Gradio's name of a page in a browser. Thread-safe."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._listening: Counter[str] = Counter()
        self._seen: OrderedDict[str, float] = OrderedDict()
        self._stopped: set[str] = set()

    def ask(self, visitor: str) -> None:
        """Notes that the visitor has asked for an answer."""
        self.see(visitor)
        with self._lock:
            self._stopped.discard(visitor)

    def stop(self, visitor: str) -> None:
        """Notes that the visitor, if it listens, does not want the rest of the answer."""
        with self._lock:
            if self._listening[visitor] > 0:
                self._stopped.add(visitor)

    def is_stopped(self, visitor: str) -> bool:
        """Whether the visitor has stopped the answer that it listens to."""
        with self._lock:
            return visitor in self._stopped

    def see(self, visitor: str) -> None:
        """Notes that the visitor has sent a request."""
        with self._lock:
            self._seen[visitor] = monotonic()
            self._seen.move_to_end(visitor)
            while len(self._seen) > _VISITORS_KNOWN:
                self._seen.popitem(last=False)

    def is_waiting(self, visitor: str) -> bool:
        """Whether the visitor listens, or has listened or sent a request a moment ago, and has not stopped."""
        with self._lock:
            if visitor in self._stopped:
                return False
            return self._listening[visitor] > 0 or monotonic() - self._seen.get(visitor, -_PATIENCE) < _PATIENCE

    @contextmanager
    def listening(self, visitor: str) -> Iterator[None]:
        """Counts the visitor as listening within the context."""
        with self._lock:
            self._listening[visitor] += 1
        try:
            yield
        finally:
            with self._lock:
                self._listening[visitor] -= 1
                self._listening += Counter()
                if not self._listening[visitor]:
                    self._stopped.discard(visitor)
            self.see(visitor)


class Guard:
    """Passes requests of the server's own page on, and answers others with a sentence.

    Args:
        app (ASGIApp): The server.
        listeners (Listeners): Counts the visitors that wait.
        is_local (bool): Whether the server listens only at this machine's own address. Other host names are then
            refused, since a site whose name leads here could read the page (DNS rebinding).
        host (str): The address of the server.
        largest_file (int): Largest upload, in bytes.
        after_upload (callable): Called without arguments after each upload.
    """

    def __init__(
        self,
        app: ASGIApp,
        listeners: Listeners,
        is_local: bool,
        host: str,
        largest_file: int,
        after_upload: Callable[[], object],
    ) -> None:
        self.app, self.listeners = app, listeners
        self.is_local, self.host = is_local, host
        self.largest_upload, self.after_upload = largest_file + _AROUND_FILE, after_upload
        self._incoming = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            # Gradio's page has no websockets.
            await (self.app if scope["type"] == "lifespan" else WebSocketClose(1008))(scope, receive, send)
            return
        answer, refusal = _Answer(send), _sentence(400, _NOT_UNDERSTOOD)
        try:
            self._check(scope)
            await self._pass_on(scope, receive, answer)
        except (HTTPException, MultiPartException) as error:
            refusal = _sentence(getattr(error, "status_code", 400), str(getattr(error, "detail", error)))
        except Exception:
            # An error of Gradio, which does not expect such requests, would fill the log.
            if scope["method"] != "POST" and not answer.is_begun:
                raise
        if answer.is_begun:
            await answer.finish()
        else:
            await refusal(scope, receive, _with_headers(send))

    def _check(self, scope: Scope) -> None:
        """Refuses requests by their headers."""
        headers = Headers(scope=scope)
        if self.is_local and not self._is_own_name(headers.get("host", "")):
            sentence = f"This page is at {self.host} alone; start it with another --host for other names."
            raise HTTPException(400, sentence)
        if _is_foreign(headers, scope["method"]):
            raise HTTPException(403, "This page is not for other sites.")
        if scope["method"] not in ("GET", "HEAD", "OPTIONS", "POST"):
            raise HTTPException(405, _NOT_UNDERSTOOD)
        if scope["method"] == "POST" and scope["path"] not in _POSTED:
            raise HTTPException(404, _NOT_UNDERSTOOD)
        length = headers.get("content-length", "0")
        if length.isdecimal():
            _check_size(int(length), self.largest_upload if scope["path"] == _UPLOAD else _LARGEST_REQUEST)

    def _is_own_name(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
            own = name in ("localhost", self.host.lower()) or name.endswith(".localhost")
            return own or ip_address(name).is_loopback
        except ValueError:
            return False

    async def _pass_on(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        if scope["path"] == _UPLOAD and scope["method"] == "POST":
            await self._upload(scope, receive, answer)
        elif scope["method"] == "POST":
            await self._post(scope, receive, answer)
        elif scope["path"] == _LISTEN:
            visitor = parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [""])[0]
            with self.listeners.listening(visitor):
                await self.app(scope, receive, answer)
        else:
            await self.app(scope, receive, answer)

    async def _post(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        """Passes a small request on after reading all of it."""
        body = b""
        async for piece in Request(scope, receive).stream():
            body += piece
            _check_size(len(body), _LARGEST_REQUEST)
        if scope["path"] == _JOIN:
            self.listeners.ask(_visitor(body))
        parts = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def replay() -> Message:
            return next(parts, None) or await receive()

        await self.app(scope, replay, answer)

    async def _upload(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        """Passes one uploaded file on in pieces."""
        boundary = parse_options_header(Headers(scope=scope).get("content-type", ""))[1].get(b"boundary", b"")
        mark, end, size = b"--" + boundary, b"", 0
        # There is a boundary before each part, and one after the last.
        marks = 0

        async def counted() -> Message:
            nonlocal end, marks, size
            message = await receive()
            piece = message.get("body", b"")
            size, self._incoming = size + len(piece), self._incoming + len(piece)
            marks += (end + piece).count(mark)
            end = (end + piece)[-len(mark) + 1 :]
            # At "maximum allowed size", Gradio removes the file and answers 413.
            if size > self.largest_upload or marks > 2:
                raise MultiPartException(f"Drop one file, of the maximum allowed size {self.largest_upload} bytes.")
            if self._incoming > _LARGEST_INCOMING:
                raise MultiPartException("Many files together exceed the maximum allowed size; try again later.")
            return message

        try:
            await self.app(scope, counted, answer)
        finally:
            self._incoming -= size
            await run_in_threadpool(self.after_upload)


class _Answer:
    """Sends answers on with the page's headers, and replaces internal errors of the server."""

    def __init__(self, send: Send) -> None:
        self._send = _with_headers(send)
        self.is_begun = self._is_dropped = self._is_ended = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._is_dropped = message["status"] == 500
            self.is_begun = not self._is_dropped
        if not self._is_dropped:
            self._is_ended = message["type"] == "http.response.body" and not message.get("more_body", False)
            await self._send(message)

    async def finish(self) -> None:
        """Ends an answer that the server has failed to complete."""
        if not self._is_ended:
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})


def _with_headers(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(_HEADERS)
        await send(message)

    return sent


def _sentence(status: int, sentence: str) -> Response:
    # Gradio's page shows one or the other, depending on the request.
    return JSONResponse({"detail": sentence, "error": sentence}, status)


def _check_size(size: int, most: int) -> None:
    if size > most:
        raise HTTPException(413, f"The request exceeds the maximum allowed size of {most} bytes.")


def _is_foreign(headers: Headers, method: str) -> bool:
    """Whether the request comes from another site, other than by a link."""
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site in ("same-origin", "none"):
        return False
    if site is not None and method == "POST":
        return True
    return origin is not None and origin.partition("://")[2] != headers.get("host")


def _visitor(body: bytes) -> str:
    """The visitor's name, if the request has it."""
    try:
        return str(json.loads(body)["session_hash"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return ""
