"""Step 3 of loading: the values fit each other. And, once paths are whole, the files of TLS can be used."""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Iterator, Mapping
from typing import Final
from urllib.parse import urlsplit

from proxy.config.addresses import is_loopback, parse_address
from proxy.config.alerts import ALERT_EVENTS, ALERT_FIGURES, ALERTS_OF_ENGINES, ReceiverConfig
from proxy.config.console import ConsoleConfig
from proxy.config.control import ControlConfig
from proxy.config.engines import LoadConfig
from proxy.config.policies import policy_faults
from proxy.config.problems import Problems
from proxy.config.reader import spell_choice
from proxy.config.service import ServiceConfig
from proxy.config.text import KeyPath, spell
from proxy.config.whole import Config
from proxy.tls import MYSQL_NAMES, TlsProblem, control_tls, engine_tls, listener_tls, receiver_tls

_METHODS: Final[Mapping[str, tuple[str, ...]]] = {
    "postgresql": ("trust", "password", "md5", "scram-sha-256", "cert", "hba"),
    "mysql": (
        "trust",
        "mysql_native_password",
        "caching_sha2_password",
        "sha256_password",
        "client_ed25519",
        "mysql_clear_password",
    ),
}


def check_meaning(config: Config, problems: Problems) -> None:
    """What stands in one place against what stands in another; no file but the config is read."""
    _check_ports(config, problems)
    _check_alerts(config, problems)
    _check_telemetry(config, problems)
    _check_balancers(config, problems)
    _check_console(config.console, problems)
    if not config.listener:
        problems.add(("listener",), "at least one [[listener]] is needed")
    if not config.state_file:
        problems.add(("state_file",), "is empty; it needs a path")
    listened = {listener.protocol for listener in config.listener}
    served = {service.protocol for service in config.service.values()}
    for index, listener in enumerate(config.listener):
        if listener.protocol not in served:
            problems.add(("listener", index, "protocol"), f'no service has protocol = "{listener.protocol}"')
    claimed: dict[tuple[str, str | None], str] = {}
    policies: dict[str, str] = {}
    for name, service in config.service.items():
        at: KeyPath = ("service", name)
        if service.protocol not in listened:
            problems.add((*at, "protocol"), f'no [[listener]] has protocol = "{service.protocol}": nobody can reach it')
        _check_databases(name, service, claimed, problems)
        if service.active not in service.engine:
            near = difflib.get_close_matches(service.active, service.engine, n=1, cutoff=0.5)
            meant = f'; did you mean "{near[0]}"?' if near else f"; there are: {', '.join(service.engine)}"
            problems.add((*at, "active"), f'no engine of this service is called "{service.active}"{meant}')
        addresses: dict[tuple[str, int], str] = {}
        for engine_name, engine in service.engine.items():
            where = (*at, "engine", engine_name, "address")
            address = _address(engine.address, where, problems)
            if address is not None and addresses.setdefault(address, engine_name) != engine_name:
                problems.add(where, f'engine "{addresses[address]}" has the same address')
        _check_auth(service, at, problems)
        if service.switch.on_drain_expired == "leave" and service.replication != "none":
            problems.add((*at, "switch", "on_drain_expired"), '"leave" needs replication = "none"')
        if service.switch.compare_at_fence_ms and service.replication == "none":
            problems.add((*at, "switch", "compare_at_fence_ms"), 'with replication = "none" there is no fence')
        elif service.switch.compare_at_fence_ms >= service.switch.hold_ms_max:
            problems.add((*at, "switch", "compare_at_fence_ms"), "must be less than hold_ms_max, the longest wait")
        if service.kept_equal_by != "one_server" and service.replication != "none":
            problems.add((*at, "kept_equal_by"), 'needs replication = "none": else replication keeps them equal')
        can_resolve = service.protocol == "postgresql" and service.replication == "stream"
        if service.failover.commit_outcome == "resolve" and not can_resolve:
            text = '"resolve" is for protocol = "postgresql" with replication = "stream"'
            problems.add((*at, "failover", "commit_outcome"), text)
        for index, hook in enumerate(service.hook):
            if bool(hook.command) == bool(hook.url):
                problems.add((*at, "hook", index), 'expected exactly one of "command" and "url"')
            elif hook.url and not hook.url.startswith(("http://", "https://")):
                problems.add((*at, "hook", index, "url"), "expected an address that begins with http:// or https://")
            if hook.at == "promote" and hook.on_failure == "ignore":
                problems.add((*at, "hook", index, "on_failure"), "what promotes the target cannot be ignored")
            if hook.at == "promote" and service.replication == "none":
                problems.add((*at, "hook", index, "at"), 'nobody is promoted with replication = "none"')
        for policy_name, policy in service.policy.items():
            for key, text in policy_faults(policy, service):
                problems.add((*at, "policy", policy_name, key) if key else (*at, "policy", policy_name), text)
            if (owner := policies.setdefault(policy_name, name)) != name:
                problems.add((*at, "policy", policy_name), f'service "{owner}" has a policy of this name already')
        _check_routes(service, at, problems)
        for engine_name, engine in service.engine.items():
            _check_load(engine.load, (*at, "engine", engine_name, "load"), problems)
        if service.reverse_replication and service.replication_login is None:
            problems.add((*at, "reverse_replication"), 'needs "replication_login": the account that replicates')
        if service.reverse_replication and service.protocol == "postgresql" and service.replication != "logical":
            text = 'needs replication = "logical"; a physical standby is made by pg_rewind or a base backup'
            problems.add((*at, "reverse_replication"), text)
        if service.replication == "logical" and service.protocol == "mysql":
            problems.add((*at, "replication"), '"logical" is for postgresql; MySQL replicates by "stream"')


def _check_routes(service: ServiceConfig, at: KeyPath, problems: Problems) -> None:
    for index, rule in enumerate(service.route):
        here = (*at, "route", index)
        if service.pool_mode != "transaction":
            problems.add(here, 'needs pool_mode = "transaction": in session mode a client keeps its backend')
        elif service.replication == "logical":
            problems.add(here, 'needs replication = "stream" or "none": only there it is known how fresh an engine is')
        for number, name in enumerate(rule.to):
            if name not in service.engine:
                text = f'no engine of this service is called "{name}"; there are: {", ".join(service.engine)}'
                problems.add((*here, "to", number), text)
        if not rule.to:
            problems.add((*here, "to"), "is empty; it needs an engine to read from")
        try:
            re.compile(rule.pattern)
        except re.error as error:
            problems.add((*here, "pattern"), f"is no regular expression: {error}")


def _check_alerts(config: Config, problems: Problems) -> None:
    engines = {name for service in config.service.values() for name in service.engine}
    named = {"services": set(config.service), "engines": engines, "receivers": set(config.alerts.receiver)}
    for name, rule in config.alerts.rule.items():
        at: KeyPath = ("alerts", "rule", name)
        said = [key for key in ("above", "below") if getattr(rule, key) is not None]
        if rule.when in ALERT_FIGURES and len(said) != 1:
            problems.add(at, f'"{rule.when}" is a figure: expected exactly one of "above" and "below"')
        elif rule.when not in ALERT_FIGURES and said:
            problems.add((*at, said[0]), f'"{rule.when}" is no figure: nothing is above or below')
        if rule.when in ALERT_EVENTS and rule.for_s:
            problems.add((*at, "for_s"), f'"{rule.when}" is an event: it fires at once')
        if rule.when not in ALERTS_OF_ENGINES and (rule.engines or rule.of != "all"):
            key = "engines" if rule.engines else "of"
            problems.add((*at, key), f'"{rule.when}" is not about engines')
        for key, known in named.items():
            for index, one in enumerate(getattr(rule, key)):
                if one not in known:
                    there = f"there are: {', '.join(sorted(known))}" if known else "there are none"
                    problems.add((*at, key, index), f'"{one}" is unknown; {there}')
    for name, receiver in config.alerts.receiver.items():
        for key, text in _receiver_faults(receiver):
            problems.add(("alerts", "receiver", name, *([key] if key else [])), text)


def _receiver_faults(receiver: ReceiverConfig) -> Iterator[tuple[str, str]]:
    needs = {"webhook": ("url",), "slack": ("url",), "email": ("server", "sender", "to"), "command": ("command",)}
    for key in needs[receiver.kind]:
        if not getattr(receiver, key):
            yield "", f'"{key}" is missing; kind "{receiver.kind}" needs it'
    if receiver.kind != "email":
        return
    if receiver.server:
        try:
            parse_address(receiver.server)
        except ValueError as error:
            yield "server", f'"{receiver.server}": {error}'
    if bool(receiver.user) != bool(receiver.password):
        yield "", '"user" and "password" go together'
    if receiver.password is not None and receiver.tls == "none":
        yield "tls", '"none" with a password: everybody on the way could read it; set "starttls" or "tls"'
    for key, texts in (("sender", [receiver.sender]), ("to", receiver.to)):
        for text in texts:
            if text and not re.fullmatch(r"[!-~]+@[!-~]+", text):
                yield key, f'"{text}" is no address of the form name@host'


def _check_load(load: LoadConfig, at: KeyPath, problems: Problems) -> None:
    if load.source == "node_exporter":
        _address(load.node_exporter, (*at, "node_exporter"), problems)
    if load.source == "query" and not load.cpu_query and not load.memory_query:
        problems.add(at, '"query" needs "cpu_query" or "memory_query"')


def _check_databases(
    name: str, service: ServiceConfig, claimed: dict[tuple[str, str | None], str], problems: Problems
) -> None:
    at = ("service", name, "databases")
    for index, database in enumerate(service.databases):
        owner = claimed.setdefault((service.protocol, database), name)
        if not database:
            problems.add((*at, index), "a database name is empty")
        elif owner != name:
            problems.add((*at, index), f'service "{owner}" has "{database}" already')
        elif database in service.databases[:index]:
            problems.add((*at, index), f'"{database}" stands here twice')
    if not service.databases and (owner := claimed.setdefault((service.protocol, None), name)) != name:
        problems.add(at, f'service "{owner}" takes every other {service.protocol} database already; name some here')


def _check_auth(service: ServiceConfig, at: KeyPath, problems: Problems) -> None:
    fitting = _METHODS[service.protocol]
    if service.auth.method not in fitting:
        problems.add(
            (*at, "auth", "method"),
            f'"{service.auth.method}" is not for {service.protocol}; expected {spell_choice(fitting)}',
        )
    auth = service.auth
    if auth.users is None and not service.asks_engine and auth.method not in ("trust", "cert", "hba"):
        problems.add(
            (*at, "auth"), '"users" is missing; name a file, or let the engine be asked: auth_query, auth_user'
        )
    if auth.method == "hba" and auth.hba is None:
        problems.add((*at, "auth"), '"hba" is missing; method "hba" needs a file with rules')
    if auth.auth_query and "$1" not in auth.auth_query:
        problems.add((*at, "auth", "auth_query"), "has no $1, which stands for the user's name")
    if auth.auth_dbname and not service.asks_engine:
        problems.add((*at, "auth", "auth_dbname"), "is for auth_query, which is not set")


def _check_console(console: ConsoleConfig, problems: Problems) -> None:
    if console.is_on and console.auth is None:
        text = (
            '"auth" is missing: how do these users log in? auth = { method = "scram-sha-256", users = { file = "…" } }'
        )
        problems.add(("console",), text)
    if console.auth is not None and console.auth.query:
        problems.add(("console", "auth"), "the console's users are in a file; no engine is asked for them")
    service = console.as_service()
    if service is not None:
        _check_auth(service, ("console",), problems)


def _check_balancers(config: Config, problems: Problems) -> None:
    for index, listener in enumerate(config.listener):
        for number, network in enumerate(listener.proxy_protocol):
            try:
                ipaddress.ip_network(network)
            except ValueError as error:
                problems.add(("listener", index, "proxy_protocol", number), f"expected a network: {error}")


def _check_ports(config: Config, problems: Problems) -> None:
    taken: dict[int, list[tuple[str, str]]] = {}
    ports = [(("control", "listen"), config.control.listen)]
    ports += [(("listener", index, "listen"), one.listen) for index, one in enumerate(config.listener)]  # type: ignore[misc]
    for key, text in ports:
        address = _address(text, key, problems)
        if address is None:
            continue
        host, port = address
        for other_host, other_key in taken.setdefault(port, []):
            if host == other_host or _is_wildcard(host) or _is_wildcard(other_host):
                problems.add(key, f"port {port} is used by {other_key} already")
                break
        taken[port].append((host, spell(key)))
    address = _address(config.control.listen, ("control", "listen"), None)
    if address is not None:
        _check_control(config.control, address[0], problems)


def _check_control(control: ControlConfig, host: str, problems: Problems) -> None:
    """Nobody else's machine reaches it without access control and TLS, unless the file says so in so many words."""
    at: KeyPath = ("control",)
    if not is_loopback(host):
        if not control.has_access_control and not control.allow_without_access_control:
            problems.add(
                at,
                f'"token" is missing, or a [control.caller.NAME]; without one, only a loopback address may be listened on, '
                f"not {host}",
            )
        if not control.tls_cert_file and not control.allow_without_tls:
            problems.add(
                at,
                f'"tls_cert_file" is missing; without TLS, only a loopback address may be listened on, not {host}, unless '
                '"allow_without_tls" says so',
            )
    owners: dict[str, str] = {}
    for name, caller in control.caller.items():
        if caller.certificate and (owner := owners.setdefault(caller.certificate, name)) != name:
            problems.add((*at, "caller", name, "certificate"), f"is the same as that of control.caller.{owner}")
        if caller.token is None and not caller.certificate:
            problems.add((*at, "caller", name), 'has neither "token" nor "certificate": nobody could be it')
        if caller.certificate and control.tls_client_cert == "none":
            problems.add((*at, "caller", name, "certificate"), 'needs tls_client_cert = "optional" or "required"')
    if control.tls_client_cert != "none" and not (control.tls_cert_file and control.tls_ca_file):
        problems.add((*at, "tls_client_cert"), 'needs "tls_cert_file" and "tls_ca_file"')
    jwt = control.jwt
    if jwt is None:
        return
    if jwt.jwks_url and jwt.jwks_file:
        problems.add((*at, "jwt"), 'has both "jwks_url" and "jwks_file"; one says where the keys are')
    for key, url in (
        ("issuer", jwt.issuer if not jwt.jwks_url and not jwt.jwks_file else ""),
        ("jwks_url", jwt.jwks_url),
    ):
        if url and not _is_safe_url(url):
            problems.add((*at, "jwt", key), "expected an address that begins with https://: the keys come from there")
    if not jwt.algorithms:
        problems.add((*at, "jwt", "algorithms"), "is empty: no token would be good")


def _check_telemetry(config: Config, problems: Problems) -> None:
    telemetry = config.telemetry
    at: KeyPath = ("telemetry", "endpoint")
    if not telemetry.endpoint:
        for name, service in config.service.items():
            if service.trace_ratio:
                problems.add(("service", name, "trace_ratio"), 'needs [telemetry] with an "endpoint" to send spans to')
        return
    try:
        parts = urlsplit(telemetry.endpoint)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_url = False
    if not is_url:
        problems.add(at, "expected an address like http://collector:4318/v1/traces")
    elif telemetry.headers is not None and not _is_safe_url(telemetry.endpoint):
        problems.add(at, "expected an address that begins with https://: whoever is on the way could read the headers")


def _is_safe_url(url: str) -> bool:
    """Whoever changes what comes from there on the way could make keys of his own."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host))


def check_tls(config: Config, problems: Problems) -> None:
    """Make every context once: what is wrong with a certificate is told now, not to the first client."""
    try:
        control_tls(config.control)
    except TlsProblem as problem:
        problems.add(("control", f"tls_{problem.key}"), problem.text)
    for receiver_name, receiver in config.alerts.receiver.items():
        try:
            receiver_tls(receiver.ca_file)
        except TlsProblem as problem:
            problems.add(("alerts", "receiver", receiver_name, problem.key), problem.text)
    for index, listener in enumerate(config.listener):
        at: KeyPath = ("listener", index)
        if listener.protocol != "mysql" and listener.client_tls_sslmode in MYSQL_NAMES:
            problems.add((*at, "client_tls_sslmode"), _only_of_mysql(listener.client_tls_sslmode))
            continue
        try:
            listener_tls(listener)
        except TlsProblem as problem:
            problems.add((*at, f"client_tls_{problem.key}"), problem.text)
    for name, service in config.service.items():
        for engine_name, engine in service.engine.items():
            if service.protocol != "mysql" and engine.server_compression != "none":
                text = "PostgreSQL has no compression"
                problems.add(("service", name, "engine", engine_name, "server_compression"), text)
            key = ("service", name, "engine", engine_name, "server_tls_sslmode")
            if service.protocol != "mysql" and engine.server_tls_sslmode in MYSQL_NAMES:
                problems.add(key, _only_of_mysql(engine.server_tls_sslmode))
                continue
            if service.protocol == "mysql" and engine.server_tls_sslmode == "allow":
                problems.add(key, '"allow" is for postgresql only; a MySQL server does not tell that it wants TLS')
                continue
            try:
                engine_tls(engine, service.protocol)
            except TlsProblem as problem:
                problems.add(("service", name, "engine", engine_name, f"server_tls_{problem.key}"), problem.text)


def _only_of_mysql(setting: str) -> str:
    return f'"{setting}" is for mysql only; for postgresql it is called "{MYSQL_NAMES[setting]}"'


def _is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _address(text: str, key: KeyPath, problems: Problems | None) -> tuple[str, int] | None:
    try:
        return parse_address(text)
    except ValueError as error:
        if problems is not None:
            problems.add(key, f'"{text}": {error}')
        return None
