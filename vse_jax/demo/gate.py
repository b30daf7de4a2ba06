"""What is let through to Gradio: the requests that the page makes, and nothing that names a file.

Gradio has routes that serve, fetch and store files by paths and URLs in requests. The page needs
none of them, as pictures come and go as data: so they are closed, along with all that is not known
to be needed, and what a request gives to a function must be texts and numbers. A path of the page's
own code is looked up among those that there were at the start.
"""

import ipaddress
import json
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

# As of ASGI.
Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]

API = "/gradio_api"
READ = {
    "/",
    "/config",
    "/favicon.ico",
    "/manifest.json",
    "/robots.txt",
    "/theme.css",
    f"{API}/info",
    f"{API}/queue/data",
    f"{API}/startup-events",
    f"{API}/theme.css",
}
# One more name behind it.
READ_BELOW = f"{API}/heartbeat/"
CALLED = {f"{API}/cancel", f"{API}/queue/join", f"{API}/reset"}
# The browser itself fetches nothing from elsewhere.
HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data: blob:; "
    "style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "font-src 'self' data:; object-src 'none'; base-uri 'self'; form-action 'none'; "
    "frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class Gate:
    """An ASGI application in front of Gradio's; see the module."""

    def __init__(
        self, page: Callable[..., Awaitable[None]], files: Iterable[str], most: int, local: bool
    ) -> None:
        """Lets nothing through yet.

        Args:
          page: Gradio's application.
          files: paths of the page's own code, as requests name them.
          most: bytes of a request.
          local: whether only this machine is served: then a request for another host, which a
            stranger's domain that points here would make, is refused.
        """
        self._page, self._files, self._most, self._local = page, frozenset(files), most, local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers, or lets Gradio answer."""
        if scope["type"] == "lifespan":
            await self._page(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        try:
            self._check(scope)
            if scope["method"] == "POST":
                receive = _again(await self._body(scope, receive), receive)
        except _RefusedError as refused:
            await _answer(send, *refused.args)
            return

        async def sent(message: Any) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *own]}
            await send(message)

        # Gradio reads what a link to the page names in it.
        query = b"" if scope["path"] == "/" else scope["query_string"]
        await self._page({**scope, "query_string": query}, receive, sent)

    def _check(self, scope: Scope) -> None:
        """Raises _RefusedError unless the page makes such requests."""
        path, below = scope["path"], scope["path"].removeprefix(READ_BELOW)
        known = {"POST": path in CALLED}
        known["GET"] = known["HEAD"] = (
            path in READ or path in self._files or (below != path and below.isalnum())
        )
        if not known.get(scope["method"]):
            raise _RefusedError(404, "nothing is there")
        host = _header(scope, b"host")
        if self._local and not is_local(_name(host)):
            raise _RefusedError(403, "only this machine is served")
        origin = _header(scope, b"origin")
        if origin and origin.partition("://")[2] != host:
            raise _RefusedError(403, "only the page itself is served")

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """A request's content; raises _RefusedError unless it is short and of plain values."""
        length = _header(scope, b"content-length")
        if length.isdecimal() and int(length) > self._most:
            raise _RefusedError(413, f"at most {self._most} bytes are taken")
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                raise _RefusedError(400, "the request ended early")
            parts.append(message.get("body", b""))
            size, more = size + len(parts[-1]), message.get("more_body", False)
            if size > self._most:
                raise _RefusedError(413, f"at most {self._most} bytes are taken")
        body = b"".join(parts)
        try:
            value = json.loads(body)
        except (ValueError, RecursionError):
            raise _RefusedError(400, "the request is no JSON") from None
        if not _is_plain(value):
            raise _RefusedError(400, "a function is given texts and numbers only, and no files")
        return body


class _RefusedError(Exception):
    """(status, what is told)."""


def is_local(host: str) -> bool:
    """Whether only this machine reaches what listens at a host, a name or an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def files_below(folder: Path, prefix: str) -> set[str]:
    """The files of a folder and those in it, as requests name them."""
    found = set()
    for place, _, names in os.walk(folder):
        inner = Path(place).relative_to(folder)
        found |= {f"{prefix}{(inner / name).as_posix()}" for name in names}
    return found


def _is_plain(value: object) -> bool:
    """Whether a call is an object of plain values, but for its `data`, a list of such."""
    if not isinstance(value, dict):
        return False
    data = value.get("data", [])
    others = [item for name, item in value.items() if name != "data"]
    return isinstance(data, list) and not any(
        isinstance(item, dict | list) for item in [*data, *others]
    )


def _header(scope: Scope, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


def _name(host: str) -> str:
    """The name or address of a header "host", without a port."""
    name, _, port = host.rpartition(":")
    return (name if port.isdecimal() else host).removeprefix("[").removesuffix("]")


def _again(body: bytes, receive: Receive) -> Receive:
    """Gives the content once, then what comes after it."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def received() -> Any:
        return waiting.pop() if waiting else await receive()

    return received


async def _answer(send: Send, status: int, told: str) -> None:
    body = json.dumps({"detail": told}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
