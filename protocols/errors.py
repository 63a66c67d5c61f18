"""What can go wrong on a wire: the peer broke the rules, or we did."""

from typing import Literal

Peer = Literal["client", "server"]


class WireError(Exception):
    """Base of everything the protocol code raises."""


class ProtocolViolation(WireError):
    """A peer sent what the protocol does not allow. Its connection ends; nobody else's does.

    `peer` is who broke the rule, `text` says which rule, for people; it never quotes data or secrets.
    """

    def __init__(self, peer: Peer, text: str) -> None:
        super().__init__(f"{peer}: {text}")
        self.peer: Peer = peer
        self.text = text


class IllegalUse(WireError):
    """Our own code used a protocol object against its rules: a bug, logged with its traceback."""
