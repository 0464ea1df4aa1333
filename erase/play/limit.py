"""A limit on requests' bodies, which the web server would otherwise read to their end."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

# Bytes; a request for pictures has a few kB.
MOST = 1 << 20

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class BodyLimit:
    """ASGI middleware that answers 413 to a request with a larger body than `MOST`."""

    def __init__(self, app: Callable[..., Awaitable[None]]):
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on, and stop reading it at the limit."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > MOST:
            await refuse(send)
            return
        read = 0

        async def bounded() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            # A body without a length: its sender has gone, as far as the page is told.
            return {"type": "http.disconnect"} if read > MOST else message

        await self.app(scope, bounded, send)


async def refuse(send: Send) -> None:
    """Answer 413, and close the connection, since the body is not read."""
    headers = [(b"content-type", b"text/plain"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    body = f"the request is larger than {MOST} bytes".encode()
    await send({"type": "http.response.body", "body": body})
