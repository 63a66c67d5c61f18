"""Asks an engine who a user is: PgBouncer's auth_query, and what the role itself says.

The name is a bound parameter, never part of a text. Two questions in one round trip: the operator's query gives the
secret; the role's own row says whether it may log in and until when its password is good, which the usual queries leave
out (CVE-2025-2291). pg_roles may be read by everybody; a user that is no role of the engine is not judged by it.
"""

from __future__ import annotations

from typing import Final

from protocols.postgres.constants import NAME_BYTES_MAX
from protocols.postgres.exchange import Group, PostgresExchange
from protocols.postgres.messages import build_bind, build_execute, build_parse, build_sync, decode, encode

PARAMETERS: Final[tuple[tuple[str, str], ...]] = (("client_encoding", "UTF8"), ("search_path", "pg_catalog"))
"""What a connection for these questions is opened with: nothing of a client's. What a query names without a schema is the
catalogue's (CVE-2025-12819: a client's search_path decided whose table was asked)."""

_ROLE: Final = b"""\
select not rolcanlogin, coalesce(rolvaliduntil < pg_catalog.now(), false)
from pg_catalog.pg_roles where rolname = $1::pg_catalog.text"""


class UserInquiry(PostgresExchange):
    """See `wire.UserInquiry`."""

    def __init__(self, query: str, user: str) -> None:
        super().__init__(
            [Group("auth_query", _ask(encode(query), user)), Group("pg_roles", _ask(_ROLE, user), columns=2)]
        )
        self._user = user
        self._first = 0
        self.secret: str | None = None
        self.why = ""

    def _end_group(self, message: bytes) -> None:
        if self._answered == 0:
            self._first = len(self.rows)
        super()._end_group(message)

    def _on_complete(self) -> None:
        if self.errors:
            return
        found, role = self.rows[: self._first], self.rows[self._first :]
        if not found:
            self.why = "no such user"
        elif len(found) > 1:
            self.errors.append("auth_query: more than one row for one user")
        elif len(found[0]) < 2:
            self.errors.append("auth_query: one column; it must return the user's name and the secret")
        elif found[0][0] is None or decode(found[0][0]) != self._user:
            # A name that was cut to 63 bytes on the way, say.
            self.why = "the row is another user's"
        elif not found[0][1]:
            self.why = "has no password"
        elif role and role[0][0] != b"f":
            self.why = "the role may not log in"
        elif role and role[0][1] != b"f":
            self.why = "the password is not valid any more (VALID UNTIL)"
        else:
            self.secret = decode(found[0][1])


def may_be_a_name(user: str) -> bool:
    """Can an engine know a user of this name at all?"""
    try:
        return 0 < len(user.encode()) <= NAME_BYTES_MAX
    except UnicodeEncodeError:
        return False


def _ask(query: bytes, user: str) -> bytes:
    return build_parse(b"", query) + build_bind(b"", b"", [encode(user)]) + build_execute(b"") + build_sync()
