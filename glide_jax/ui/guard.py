"""Checks on every request before gradio sees it: only the page itself and programs are let in, within size limits."""

import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any
from urllib.parse import urlsplit

# Bytes of a single request, and of all that are arriving at a time, since they may be held in memory.
BODY = 64_000_000
_ARRIVING = 4 * BODY
_ALLOW = "; whoever runs it may allow that name: --allowed_host"
_EVERY_ADDRESS = ("0.0.0.0", "::")
# Endpoints of gradio that the page does not use: they run ffmpeg, or fetch from other addresses.
_CLOSED = ("process_recording", "file=http", "file/http", "proxy=")

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]


class Hosts:
    """The host names under which the page is served.

    Browsers send the host name, so neither a site that points its own name at this machine gets in, nor a form or
    script on another site.

    Args:
        host: the address listened on; if that is every address, any address is accepted as a name.
        allowed: further names, such as a reverse proxy's.
    """

    def __init__(self, host: str, allowed: Sequence[str] = ()) -> None:
        self._every_address = host in _EVERY_ADDRESS
        self._names = {host.lower(), *map(str.lower, allowed)}
        if self._every_address:
            self._names |= {socket.gethostname().lower(), f"{socket.gethostname().lower()}.local"}

    def refusal(self, host: str, origin: str | None = None) -> str | None:
        """What is wrong with a request with these headers; None if nothing."""
        name, theirs = _name(f"//{host}"), origin and _name(origin)
        if not (self._is_ours(name) or (self._every_address and _address(name))):
            return f"this page is not served as {name[:100]!r}{_ALLOW}"
        if theirs is not None and theirs != name and not self._is_ours(theirs):
            return f"pages of {(theirs or str(origin))[:100]!r} may not use this one{_ALLOW}"
        return None

    def _is_ours(self, name: str) -> bool:
        return name in self._names or is_loopback(name)


class Guard:
    """ASGI middleware that answers 403 to other sites and limits what may be sent.

    Args:
        app: the server behind it.
        hosts: the names whose requests it passes on.
        tidy: called in a thread after each upload.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], hosts: Hosts, tidy: Callable[[], object]) -> None:
        self._app, self._hosts, self._tidy = app, hosts, tidy
        self._arriving = 0

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        """Passes a request on, or refuses it."""
        from starlette.concurrency import run_in_threadpool  # noqa: PLC0415
        from starlette.datastructures import Headers  # noqa: PLC0415
        from starlette.responses import JSONResponse  # noqa: PLC0415

        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if refusal := self._hosts.refusal(headers.get("host", ""), headers.get("origin")):
            await JSONResponse({"detail": refusal}, 403)(scope, receive, send)
            return
        if scope["path"].removeprefix("/gradio_api/").lower().startswith(_CLOSED):
            await JSONResponse({"detail": "this page does not offer that"}, 404)(scope, receive, send)
            return
        arrived = 0

        async def counted() -> _Message:
            nonlocal arrived
            message = await receive()
            size = len(message.get("body", b""))
            arrived += size
            self._arriving += size
            self._check(arrived)
            return message

        try:
            await self._app(scope, counted, send)
        finally:
            self._arriving -= arrived
            if headers.get("content-type", "").startswith("multipart/"):
                await run_in_threadpool(self._tidy)

    def _check(self, arrived: int) -> None:
        from starlette.exceptions import HTTPException  # noqa: PLC0415

        if arrived > BODY:
            raise HTTPException(413, f"a request may have {BODY // 10**6} MB")
        if self._arriving > _ARRIVING:
            raise HTTPException(503, "too much is being sent at once: try again in a moment")


def _name(address: str) -> str:
    """The host in an address, "" if there is none."""
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on this address."""
    address = _address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def is_name(host: str) -> bool:
    """Whether this is a host name or address, without scheme, port and path."""
    return re.fullmatch(r"[\w.-]+", host) is not None or _address(host) is not None
