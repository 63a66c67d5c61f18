"""Receivers of a test's own: an HTTP server, a mail server and a command, all real."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword

from proxy.embedded import free_port
from proxy.embedded.certificate import write_certificate


class Web:
    """An HTTP server that keeps what it is sent; `status` is what it answers."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        """Path, headers, JSON."""
        self.status = 200
        self.said = "thanks"
        self.url = ""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            self.requests.append((first.split()[1], headers, json.loads(body)))
            writer.write(f"HTTP/1.1 {self.status} X\r\nContent-Length: {len(self.said)}\r\n\r\n{self.said}".encode())
            await writer.drain()
        except asyncio.IncompleteReadError:
            pass  # who posts has given up
        finally:
            writer.close()

    def at(self, path: str) -> list[Any]:
        """What was sent there."""
        return [body for where, _, body in self.requests if where == path]


@asynccontextmanager
async def web(certificate: tuple[Path, Path] | None = None) -> AsyncIterator[Web]:
    """One that listens, with TLS if there is a key and a certificate."""
    found = Web()
    context = None
    if certificate is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate[1], certificate[0])
    port = free_port()
    server = await asyncio.start_server(found._serve, "127.0.0.1", port, ssl=context)
    found.url = f"{'https' if context else 'http'}://127.0.0.1:{port}"
    async with server:
        yield found


class Mail:
    """A mail server that keeps what it is sent; it demands STARTTLS and a login."""

    USER, PASSWORD = "alerts", "canary-smtp-password-7f3a91c2d4"

    def __init__(self, folder: Path) -> None:
        self.messages: list[EmailMessage] = []
        self.recipients: list[list[str]] = []
        self.port = free_port()
        self.refuses = ""
        """What is said to a mail instead of 250."""
        folder.mkdir(exist_ok=True)
        self.key, self.certificate = write_certificate(folder)

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:  # noqa: N802  (aiosmtpd's name)
        if self.refuses:
            return self.refuses
        self.messages.append(message_from_bytes(envelope.content, policy=policy.default))
        self.recipients.append(list(envelope.rcpt_tos))
        return "250 taken"

    def _enters(self, _server: Any, _session: Any, _envelope: Any, _mechanism: str, data: Any) -> AuthResult:
        is_right = isinstance(data, LoginPassword) and data == LoginPassword(self.USER.encode(), self.PASSWORD.encode())
        return AuthResult(success=is_right, handled=False)

    def protocol(self) -> SMTP:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.certificate, self.key)
        return SMTP(
            self, tls_context=context, require_starttls=True, auth_required=True, authenticator=self._enters,
            auth_exclude_mechanism=["LOGIN"],
            loop=asyncio.get_running_loop(), hostname="mail.test",
        )  # fmt: skip


@asynccontextmanager
async def mail(folder: Path) -> AsyncIterator[Mail]:
    """One that listens."""
    found = Mail(folder)
    server = await asyncio.get_running_loop().create_server(found.protocol, "127.0.0.1", found.port)
    async with server:
        yield found
