"""Who may log in to one service, how they have to prove it, and what opens backends in their name.

Where a user's secret comes from, in this order: the users file, then the active engine (`auth_query`). What opens a
backend: a plain password of the file; else what the client's own login left (`won`): the password it sent, its md5
hash, or its SCRAM keys; in MySQL the password or its SHA1. Nothing of that is ever written anywhere; it lives as long as the worker.

A password that is changed takes effect without a restart:

- the file is looked at (one stat) before it is used, but not again within `LOOK_S`, and read when it is another one than
  before. A file that cannot be read leaves the users as they were, with a warning;
- the engine is asked at each login. An answer is for those who had come when it was asked, however many they are, and for
  nobody later: a SCRAM login that began with an old verifier cannot be taught a new one;
- what a client's login left is replaced by its next login, and dropped when an engine refuses it.

Sessions that are there stay, whatever happens to their passwords, as they do at a server.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import structlog

from protocols.mysql.auth import is_plain as is_plain_for_mysql
from protocols.postgres.auth import common_name, is_plain
from protocols.wire import Channel, Credential, CredentialWanted
from proxy.config import SECRET_BYTES_MAX, ServiceConfig, UsersError, parse_users, unfit_secret
from proxy.errors import LoginRejected
from proxy.hba import Rule, decide, parse_hba

_log = structlog.get_logger("turnout.users")

LOOK_S: Final = 0.005
"""Between two looks at the users file, at least: many clients may log in meanwhile."""

IN_CLEAR: Final = frozenset({"password", "mysql_clear_password"})
"""Methods by which whoever listens learns the password, unless there is TLS."""

Stamp = tuple[int, int, int]
"""Time of change, size and number of a file."""


class Users:
    """See the module. `ask` puts `auth_query` to the active engine: user and database to secret or None."""

    def __init__(self, service: str, config: ServiceConfig, ask: Callable[[str, str], Awaitable[str | None]]) -> None:
        self._service = service
        self._ask = ask
        self._won: dict[str, Credential] = {}
        self._rules: list[Rule] = []
        self._known: dict[str, str] = {}
        self._path: Path | None = None
        self._stamp: Stamp | None = None
        self._looked_ns = 0
        self.reconfigure(config)

    def reconfigure(self, config: ServiceConfig) -> None:
        """The config was read (again); it has been checked."""
        self._config = config
        self._is_plain = is_plain_for_mysql if config.protocol == "mysql" else is_plain
        auth = config.auth
        self._rules = parse_hba(auth.hba.value or "") if auth.method == "hba" and auth.hba is not None else []
        self._known = parse_users(auth.users.value or "") if auth.users is not None else {}
        self._path = Path(auth.users.file) if auth.users is not None and auth.users.file is not None else None
        # Unknown: it may be newer than what the config had when it was read, which may be long ago.
        self._stamp = None
        self._looked_ns = 0

    # --- how a client has to prove itself ---

    def method_for(self, wanted: CredentialWanted, host: str, channel: Channel) -> str:
        """The method, as `wire.ClientLogin.give_credential` takes it. Raises LoginRejected."""
        auth = self._config.auth
        method: str = auth.method
        if method == "hba":
            method = self._ruled(wanted, host, channel)
        if method in IN_CLEAR and not channel.is_encrypted and not auth.password_in_clear:
            option = "--ssl-mode=REQUIRED" if self._config.protocol == "mysql" else "sslmode=require"
            raise LoginRejected(
                "this proxy takes passwords in clear text over TLS only",
                hint=f"Connect with {option}; or set `password_in_clear` in the proxy's config.",
            )
        return method

    def _ruled(self, wanted: CredentialWanted, host: str, channel: Channel) -> str:
        rule = decide(
            self._rules,
            user=wanted.user,
            database=wanted.database,
            host=host,
            is_encrypted=channel.is_encrypted,
            is_replication=wanted.is_replication,
        )
        who = (
            f'host "{host}", user "{wanted.user}", database "{wanted.database}", '
            f"{'SSL encryption' if channel.is_encrypted else 'no encryption'}"
        )
        hint = "The rules are those of the proxy: `hba` in its config."
        if rule is None:
            raise LoginRejected(f"no pg_hba.conf entry for {who}", hint=hint)
        if rule.method == "reject":
            raise LoginRejected(f"pg_hba.conf rejects connection for {who}", hint=hint)
        if rule.client_certificate:
            if channel.certificate is None:
                raise LoginRejected("connection requires a valid client certificate", hint=hint)
            if rule.client_certificate == "verify-full" and common_name(channel.certificate) != wanted.user:
                raise LoginRejected(f'certificate authentication failed for user "{wanted.user}"', hint=hint)
        return rule.method

    # --- secrets ---

    @property
    def is_open(self) -> bool:
        """There is no list of users: whoever proves something is let in."""
        return self._config.auth.users is None and not self._config.asks_engine

    def known(self, user: str) -> str | None:
        """The secret in the users file."""
        self._look_at_file()
        return self._known.get(user)

    def needs_asking(self, user: str) -> bool:
        """The file does not have this user, and the engine may."""
        return self._config.asks_engine and user not in self._known

    async def find(self, wanted: CredentialWanted) -> str | None:
        """The secret of a user that `needs_asking`. Raises ProxyError."""
        # Physical replication has no database, and nobody can be asked in none. MySQL's tables of users are in no other.
        own = self._config.admin.database or "postgres" if wanted.is_replication else wanted.database
        database = self._config.auth.auth_dbname or ("" if self._config.protocol == "mysql" else own)
        return await self._ask(wanted.user, database)

    # --- what opens backends ---

    def won(self, user: str, credential: Credential) -> bool:
        """A client proved to be `user`, and this is what its proof left. True if that is something new."""
        if credential is None or self._won.get(user) == credential:
            return False
        self._won[user] = credential
        return True

    def credential_of(self, user: str) -> Credential:
        """What opens a backend as `user`; None if nothing is known."""
        known = self.known(user)
        if known is not None and self._is_plain(known):
            return known
        return self._won.get(user, known)

    def refused(self, user: str) -> None:
        """An engine refused what `credential_of` gave: the password was changed there."""
        self._won.pop(user, None)

    # --- the file ---

    def _look_at_file(self) -> None:
        if self._path is None:
            return
        now_ns = time.monotonic_ns()
        if now_ns - self._looked_ns < LOOK_S * 1e9:
            return
        self._looked_ns = now_ns
        try:
            found = os.stat(self._path)
        except OSError as error:
            self._cannot_read(error.strerror or str(error), (0, 0, 0))
            return
        stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
        if stamp == self._stamp:
            return
        self._read(stamp)

    def _read(self, stamp: Stamp) -> None:
        assert self._path is not None
        try:
            with self._path.open("rb") as file:
                data = file.read(SECRET_BYTES_MAX + 1)
                if len(data) > SECRET_BYTES_MAX:
                    raise UsersError(1, f"is longer than {SECRET_BYTES_MAX} bytes")
            known = parse_users(data.decode())
            for user, secret in known.items():
                why = unfit_secret(self._config, secret)
                if why:
                    raise UsersError(1, f'user "{user}" {why}')
        except OSError as error:
            self._cannot_read(error.strerror or str(error), stamp)
        except UnicodeDecodeError:
            self._cannot_read("it is not UTF-8", stamp)
        except UsersError as error:
            self._cannot_read(f"line {error.line}: {error.text}", stamp)
        else:
            if self._stamp is not None:
                _log.info("users file read again", service=self._service, users=len(known))
            self._stamp = stamp
            self._known = known

    def _cannot_read(self, why: str, stamp: Stamp) -> None:
        if self._stamp != stamp:
            _log.warning("users file cannot be read; its users stay as they were", service=self._service, why=why)
        self._stamp = stamp
