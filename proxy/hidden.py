"""What of a config must not be seen: in logs, reports, outcomes of calls, environments. Light: workers import it, too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from proxy.config import Config, Secret, parse_users

USERS_CHARS_MAX: Final = 64 * 1024
"""A longer list of users is not searched for in each line of the log; nothing logs a password anyway."""

HIDDEN_PART_CHARS_MIN: Final = 8
"""Parts of a secret address that are shorter are not hidden by themselves: `/hook` would hide half of every text."""


def secrets_of(part: Any) -> set[str]:
    """Every secret value in a part of the config."""
    return {one.value for one in _secrets(part) if one.value}


def secret_variables(config: Config) -> frozenset[str]:
    """Names of the environment variables that hold secrets of this config."""
    return frozenset(one.env for one in _secrets(config) if one.env)


def _secrets(part: Any) -> Iterator[Secret]:
    if isinstance(part, Secret):
        yield part
    elif isinstance(part, msgspec.Struct):
        for name in part.__struct_fields__:
            yield from _secrets(getattr(part, name))
    elif isinstance(part, dict | list | tuple):
        for one in part.values() if isinstance(part, dict) else part:
            yield from _secrets(one)


def hidden_words(config: Config) -> set[str]:
    """Everything in a config that no log may show, as far as it stands there as a word of its own: passwords, tokens, secret
    addresses with their parts, and the users' passwords, if they are not too many."""
    found = secrets_of(config)
    for receiver in config.alerts.receiver.values():
        if receiver.url is not None and receiver.url.value:
            found |= parts_of(receiver.url.value)
    for service in config.service.values():
        users = service.auth.users
        if users is not None and users.value and len(users.value) <= USERS_CHARS_MAX:
            found |= set(parse_users(users.value).values())
    return found


def parts_of(url: str) -> set[str]:
    """What must not be seen of an address that is a secret: the whole, and its path, query and password alone."""
    try:
        split = urlsplit(url)
        found = {url, split.path, split.query, split.password or "", *split.path.split("/")}
    except ValueError:
        found = {url}
    return {one for one in found if len(one) >= HIDDEN_PART_CHARS_MIN}


def host_of(url: str) -> str:
    """What may be shown of such an address."""
    try:
        return urlsplit(url).hostname or "?"
    except ValueError:
        return "?"
