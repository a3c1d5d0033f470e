"""Answers that contain text of agents and callers are data: a browser must not guess that one is a page."""

from litestar.types import ASGIApp, Message, Receive, Scope, Send

_NO_SNIFFING = (b"x-content-type-options", b"nosniff")


class UnsniffedApp:
    """An ASGI application that has browsers believe the content type of every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Add the header to an answer that does not have it."""

        async def send_unsniffed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                if _NO_SNIFFING not in headers:
                    message = {**message, "headers": [*headers, _NO_SNIFFING]}
            await send(message)

        await self._app(scope, receive, send_unsniffed)
