"""Asks an engine who a user is: what it keeps of the password, and by which plugin.

MySQL and MariaDB keep it in different tables, and which one it is shows in which question is refused: both are asked in
one round trip. An account has a host besides its name; the one that counts is the one the server would take for a connection
from here, since that is where the user's backends will come from: hosts that match by LIKE, the longest literal beginning
first. Accounts whose host is an address with a netmask are not found.

The name is put in as a hexadecimal literal, so that nothing in it has a meaning.
"""

from __future__ import annotations

from typing import Final

from protocols.mysql import auth
from protocols.mysql import constants as c
from protocols.mysql.exchange import Answer, Exchange, Question
from protocols.mysql.messages import command, raw

NAME_BYTES_MAX: Final = 32 * 4
"""MySQL: 32 characters; MariaDB: 128 bytes."""

_MATCH: Final = (
    "where user = $1 and substring_index(user(), '@', -1) like if(host = '', '%', host) "
    "order by locate('%', host) > 0, length(substring_index(host, '%', 1)) desc limit 1"
)
_MYSQL: Final = "select user, plugin, authentication_string, account_locked from mysql.user " + _MATCH
_MARIADB: Final = (
    "select user, coalesce(json_value(priv, '$.plugin'), ''), coalesce(json_value(priv, '$.authentication_string'), ''), "
    "if(coalesce(json_value(priv, '$.account_locked'), '0') in ('0', 'false'), 'N', 'Y') from (select * from "
    "mysql.global_priv where coalesce(json_value(priv, '$.is_role'), '0') in ('0', 'false')) as accounts " + _MATCH
)


class UserInquiry(Exchange):
    """See `wire.UserInquiry`. An operator's query answers with name, plugin and authentication_string, and perhaps with
    `Y` for an account that may not log in."""

    def __init__(self, query: str, user: str) -> None:
        name = f"_utf8mb4 x'{raw(user).hex()}'"
        texts = {"auth_query": query} if query else {"mysql.user": _MYSQL, "mysql.global_priv": _MARIADB}
        super().__init__(
            [
                Question(command(c.COM_QUERY, raw(one.replace("$1", name))), where, is_optional=not query)
                for where, one in texts.items()
            ],
            capabilities=0,
            on_complete=self._found,
        )
        self._user = user
        self.secret: str | None = None
        self.why = ""

    def _found(self, answers: list[Answer]) -> None:
        told = [answer for answer in answers if answer.error is None]
        if not told:
            # Of two refusals one is that there is no such table (1146) or column (1054): the other one tells more.
            refusals = [(answer.error, answer.question.name) for answer in answers if answer.error is not None]
            known = [one for one in refusals if one[0].code not in (1146, 1054)] or refusals
            self.errors += [f"{name}: {error.message} ({error.code})" for error, name in known[:1] if not self.errors]
            return
        rows = told[-1].rows
        if not rows:
            self.why = "no such user, or none that may come from here"
        elif len(rows) > 1:
            self.errors.append("auth_query: more than one row for one user")
        elif len(rows[0]) < 3:
            self.errors.append("auth_query: it must return the user's name, the plugin and the authentication_string")
        elif rows[0][0] != raw(self._user):
            self.why = "the row is another user's"
        elif len(rows[0]) > 3 and rows[0][3] == b"Y":
            self.why = "the account is locked"
        else:
            plugin, kept = (rows[0][1] or b"").decode("ascii", "replace"), rows[0][2] or b""
            self.secret = auth.secret_of(plugin, kept)
            if self.secret is None:
                self.why = f"what is kept by plugin {plugin} proves nothing to Turnout"


def may_be_a_name(user: str) -> bool:
    """Can an engine know a user of this name at all? The empty name is MySQL's anonymous user: of no use here."""
    return 0 < len(raw(user)) <= NAME_BYTES_MAX
