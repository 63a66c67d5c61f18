"""Turnout: a database proxy that moves running sessions from one server to another."""

from typing import Final

VERSION: Final = "0.1.0"
