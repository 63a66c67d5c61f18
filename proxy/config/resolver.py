"""Step 4 of loading: the secrets are there, and fit where they stand. What is read is never quoted."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from typing import Final

import msgspec

from protocols.mysql.auth import unfit as unfit_for_mysql
from protocols.postgres.auth import is_md5, is_verifier
from proxy.config.alerts import AlertsConfig
from proxy.config.control import HASHED, TOKEN_LENGTH_MIN, CallerConfig, hash_token
from proxy.config.problems import Problems
from proxy.config.reader import CONFIG_BYTES_MAX
from proxy.config.service import ServiceConfig
from proxy.config.table import Secret
from proxy.config.telemetry import TelemetryConfig
from proxy.config.text import KeyPath, UsersError, parse_users
from proxy.config.whole import Config
from proxy.hba import HbaError, expand, parse_hba

SECRET_BYTES_MAX: Final = 16 * 1024 * 1024
"""Most bytes of a password or users file: some 80,000 users with SCRAM-SHA-256 verifiers."""


class Resolver:
    """Fills in `Secret.value`. What it reads is never quoted."""

    def __init__(self, problems: Problems, environ: Mapping[str, str]) -> None:
        self._problems = problems
        self._environ = environ

    def resolve(self, config: Config) -> Config:
        control = config.control
        replace = msgspec.structs.replace
        services = {}
        for name, service in config.service.items():
            at: KeyPath = ("service", name)
            admin = replace(service.admin, password=self._password(service.admin.password, (*at, "admin", "password")))
            users = self._with_place(self._secret(service.auth.users, (*at, "auth", "users")))
            self._check_users(service, users, (*at, "auth", "users"))
            hba = self._rules(service, (*at, "auth", "hba"))
            engines = {}
            for engine_name, engine in service.engine.items():
                login = engine.login
                if login is not None:
                    key = (*at, "engine", engine_name, "login", "password")
                    login = replace(login, password=self._password(login.password, key))
                engines[engine_name] = replace(engine, login=login)
            replicator = service.replication_login
            if replicator is not None:
                replicator = replace(
                    replicator, password=self._password(replicator.password, (*at, "replication_login", "password"))
                )
            hooks = [
                replace(hook, token=self._password(hook.token, (*at, "hook", index, "token")))
                for index, hook in enumerate(service.hook)
            ]
            services[name] = replace(
                service,
                hook=hooks,
                replication_login=replicator,
                admin=admin,
                auth=replace(service.auth, users=users, hba=hba),
                engine=engines,
            )
        console = config.console
        as_service = console.as_service()
        if as_service is not None and console.auth is not None:
            users = self._with_place(self._secret(console.auth.users, ("console", "auth", "users")))
            self._check_users(as_service, users, ("console", "auth", "users"))
            hba = self._rules(as_service, ("console", "auth", "hba"))
            console = replace(console, auth=replace(console.auth, users=users, hba=hba))
        token = self._token(control.token, ("control", "token"))
        callers = {
            name: replace(caller, token=self._token(caller.token, ("control", "caller", name, "token")))
            for name, caller in control.caller.items()
        }
        self._check_different(token, callers)
        control = replace(control, token=token, caller=callers)
        alerts, telemetry = self._alerts(config.alerts), self._telemetry(config.telemetry)
        return replace(config, control=control, console=console, service=services, alerts=alerts, telemetry=telemetry)

    def _telemetry(self, telemetry: TelemetryConfig) -> TelemetryConfig:
        at = ("telemetry", "headers")
        headers = self._password(telemetry.headers, at)
        if headers is not None and headers.value:
            if not all(name.strip() and equals for name, equals, _ in _pairs(headers.value)):
                self._problems.add(at, f"{_origin(headers)} is not of the form name=value,name=value")
        return msgspec.structs.replace(telemetry, headers=headers)

    def _alerts(self, alerts: AlertsConfig) -> AlertsConfig:
        replace = msgspec.structs.replace
        receivers = {}
        for name, receiver in alerts.receiver.items():
            at: KeyPath = ("alerts", "receiver", name)
            secrets = {key: self._password(getattr(receiver, key), (*at, key)) for key in ("url", "token", "password")}
            url = secrets["url"]
            if url is not None and url.value and not url.value.strip().startswith(("http://", "https://")):
                text = f"{_origin(url)} does not hold an address that begins with http:// or https://"
                self._problems.add((*at, "url"), text)
            if url is not None and url.value:
                secrets["url"] = replace(url, value=url.value.strip())
            receivers[name] = replace(receiver, **secrets)
        return replace(alerts, receiver=receivers)

    def _token(self, secret: Secret | None, at: KeyPath) -> Secret | None:
        """A bearer token as its hash."""
        secret = self._password(secret, at)
        if secret is None or not secret.value:
            return secret
        value = secret.value.strip()
        if value.startswith(HASHED) and not re.fullmatch(r"[0-9a-f]{64}", value.removeprefix(HASHED).lower()):
            self._problems.add(
                at, f"{_origin(secret)} begins with {HASHED} but is no SHA-256 in hex; see `turnout token`"
            )
        elif not value.startswith(HASHED) and len(value) < TOKEN_LENGTH_MIN:
            text = f"{_origin(secret)} is shorter than {TOKEN_LENGTH_MIN} characters; `turnout token` makes one that is not"
            self._problems.add(at, text)
        return msgspec.structs.replace(secret, value=hash_token(value))

    def _check_different(self, token: Secret | None, callers: Mapping[str, CallerConfig]) -> None:
        """Who shows a token must be one caller."""
        owners = {token.value: "control.token"} if token is not None else {}
        for name, caller in callers.items():
            if caller.token is None or not caller.token.value:
                continue
            owner = owners.setdefault(caller.token.value, f"control.caller.{name}")
            if owner != f"control.caller.{name}":
                self._problems.add(("control", "caller", name, "token"), f"is the same as that of {owner}")

    def _password(self, secret: Secret | None, at: KeyPath) -> Secret | None:
        """A secret of one line."""
        secret = self._secret(secret, at)
        if secret is None or secret.value is None:
            return secret
        value = secret.value if secret.env is not None else secret.value.partition("\n")[0].removesuffix("\r")
        if not value:
            self._problems.add(at, f"{_origin(secret)} is empty")
        return msgspec.structs.replace(secret, value=value)

    def _secret(self, secret: Secret | None, at: KeyPath) -> Secret | None:
        if secret is None:
            return None
        if secret.env is not None:
            value = self._environ.get(secret.env)
            if value is None:
                self._problems.add(at, f"the environment variable {secret.env} is not set")
        else:
            assert secret.file is not None, "the reader saw exactly one of env and file"
            value = self._read(secret.file, at)
        return msgspec.structs.replace(secret, value=value)

    def _read(self, name: str, at: KeyPath) -> str | None:
        path = self._problems.path.parent / name
        try:
            with path.open("rb") as file:
                data = file.read(SECRET_BYTES_MAX + 1)
            if len(data) > SECRET_BYTES_MAX:
                self._problems.add(at, f"{path} is longer than {SECRET_BYTES_MAX} bytes")
                return None
            return data.decode()
        except OSError as error:
            self._problems.add(at, f"{path} cannot be read: {error.strerror}")
        except UnicodeDecodeError:
            self._problems.add(at, f"{path} is not UTF-8")
        return None

    def _with_place(self, users: Secret | None) -> Secret | None:
        """With the file's absolute path: workers look whether it has changed."""
        if users is None or users.file is None:
            return users
        return msgspec.structs.replace(users, file=str(self._problems.path.absolute().parent / users.file))

    def _place(self, secret: Secret) -> str:
        return str(self._problems.path.parent / secret.file) if secret.file is not None else f"${secret.env}"

    def _rules(self, service: ServiceConfig, at: KeyPath) -> Secret | None:
        """The rule file with its includes in place."""
        rules = self._secret(service.auth.hba, at)
        if rules is None or rules.value is None:
            return rules
        folder = self._problems.path.parent
        if rules.file is not None:
            folder = (folder / rules.file).parent

        def read(name: str) -> str:
            with (folder / name).open("rb") as file:
                data = file.read(CONFIG_BYTES_MAX + 1)
            if len(data) > CONFIG_BYTES_MAX:
                raise OSError(errno.EFBIG, f"it is longer than {CONFIG_BYTES_MAX} bytes")
            return data.decode("utf-8", "replace")

        try:
            text = expand(rules.value, read)
            parsed = parse_hba(text)
        except HbaError as error:
            self._problems.add_elsewhere(f"{self._place(rules)}:{error.line}", error.text)
            return rules
        if not parsed:
            self._problems.add(at, f"{_origin(rules)} has no rule: nobody could log in")
        asks = next((rule for rule in parsed if rule.method in ("md5", "password", "scram-sha-256")), None)
        if asks is not None and service.auth.method == "hba" and service.auth.users is None and not service.auth.query:
            text_of = f'line {asks.line} of {_origin(rules)} asks for passwords: "users" is missing, or auth_query'
            self._problems.add(at, text_of)
        return msgspec.structs.replace(rules, value=text)

    def _check_users(self, service: ServiceConfig, users: Secret | None, at: KeyPath) -> None:
        if users is None or users.value is None:
            return
        place = self._place(users)
        try:
            known = parse_users(users.value)
        except UsersError as error:
            self._problems.add_elsewhere(f"{place}:{error.line}", error.text)
            return
        if not known:
            self._problems.add(at, f"{_origin(users)} names no user")
        for name, secret in known.items():
            reason = unfit_secret(service, secret)
            if reason:
                self._problems.add_elsewhere(place, f'user "{name}" {reason}')


def unfit_secret(service: ServiceConfig, secret: str) -> str:
    """Why a user's secret cannot be used by this service; empty if it can."""
    if service.protocol == "mysql":
        if is_md5(secret):
            return "has an md5 hash, which MySQL's methods cannot use; use plain text"
        if secret.startswith("SCRAM-SHA-256$"):
            return "has a SCRAM-SHA-256 verifier, which MySQL's methods cannot use; use plain text"
        return unfit_for_mysql(secret)
    elif secret.startswith("SCRAM-SHA-256$") and not is_verifier(secret):
        return "has a SCRAM-SHA-256 verifier that is not complete; copy rolpassword of pg_authid as a whole"
    elif is_md5(secret) and service.auth.method == "scram-sha-256":
        return (
            'has an md5 hash, which method "scram-sha-256" cannot use; use plain text or a SCRAM-SHA-256 verifier, '
            'or method "md5"'
        )
    return ""


def _origin(secret: Secret) -> str:
    return f"the environment variable {secret.env}" if secret.env is not None else str(secret.file)


def _pairs(headers: str) -> list[tuple[str, str, str]]:
    return [part.partition("=") for part in headers.split(",")]
