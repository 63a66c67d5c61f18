"""TLS contexts out of what the config says, and what a certificate says of its owner.

Knows OpenSSL by Python's `ssl`; refuses to know sockets, protocols' messages, or who asks. Files are read when a context
is made, so a new one has the certificates as they are then.
"""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

if TYPE_CHECKING:
    from proxy.config import EngineConfig, ListenerConfig

TlsMode = Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"]

VERSIONS: Final = {
    "tlsv1.2": ssl.TLSVersion.TLSv1_2,
    "tlsv1.3": ssl.TLSVersion.TLSv1_3,
}
"""Older versions are left out: no supported client needs them, and OpenSSL 3 refuses them by default."""


class TlsProblem(Exception):
    """A context cannot be made; `key` is the end of the setting's name that is wrong (`cert_file`, say)."""

    def __init__(self, key: str, text: str) -> None:
        super().__init__(text)
        self.key = key
        self.text = text


@dataclass(frozen=True, slots=True)
class ListenerTls:
    """TLS towards the clients of one port."""

    mode: TlsMode
    context: ssl.SSLContext | None
    """None: not offered."""
    channel_binding: bytes = b""
    """`tls-server-end-point` of our certificate; empty where it has none."""

    @property
    def is_required(self) -> bool:
        return self.mode in ("require", "verify-ca", "verify-full")


@dataclass(frozen=True, slots=True)
class EngineTls:
    """TLS towards one engine."""

    mode: TlsMode
    context: ssl.SSLContext | None
    """None: never."""
    hostname: str
    """As the certificate of a verified engine names it."""

    @property
    def is_required(self) -> bool:
        return self.mode in ("require", "verify-ca", "verify-full")

    def attempts(self) -> Sequence[bool]:
        """With TLS (True) or without: what to try, in this order, as libpq does it."""
        if self.context is None:
            return (False,)
        if self.is_required:
            return (True,)
        return (False, True) if self.mode == "allow" else (True, False)


NO_LISTENER_TLS: Final = ListenerTls("disable", None)
NO_ENGINE_TLS: Final = EngineTls("disable", None, "")


def listener_tls(config: ListenerConfig) -> ListenerTls:
    """Raises TlsProblem."""
    mode = config.client_tls_sslmode
    if mode == "disable":
        return ListenerTls(mode, None)
    context = _context(ssl.PROTOCOL_TLS_SERVER, config.client_tls_protocols, config.client_tls_ciphers)
    # PostgreSQL hands out no session tickets either: a resumed session would carry on what was verified before.
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET | ssl.OP_CIPHER_SERVER_PREFERENCE
    if not config.client_tls_cert_file:
        raise TlsProblem("cert_file", f'is needed with client_tls_sslmode = "{mode}"')
    _load_certificate(context, config.client_tls_cert_file, config.client_tls_key_file)
    if config.client_tls_ca_file:
        _load_ca(context, config.client_tls_ca_file)
        # Below verify-ca a client may show none, as with PostgreSQL's ssl_ca_file; one that is shown is verified.
        context.verify_mode = ssl.CERT_REQUIRED if mode in ("verify-ca", "verify-full") else ssl.CERT_OPTIONAL
    elif mode in ("verify-ca", "verify-full"):
        raise TlsProblem("ca_file", f'is needed with client_tls_sslmode = "{mode}"')
    _set_alpn(context, config.protocol)
    return ListenerTls(mode, context, end_point_of(_first_certificate(config.client_tls_cert_file)))


def engine_tls(config: EngineConfig, protocol: str) -> EngineTls:
    """Raises TlsProblem. libpq's meanings: `require` with a CA file verifies like `verify-ca`; `allow` and `prefer`
    verify nothing, for they would go on without TLS."""
    mode = config.server_tls_sslmode
    host = config.address.rpartition(":")[0].strip("[]")
    if mode == "disable" or protocol != "postgresql":
        return EngineTls("disable", None, host)
    context = _context(ssl.PROTOCOL_TLS_CLIENT, config.server_tls_protocols, config.server_tls_ciphers)
    context.check_hostname = mode == "verify-full"
    if config.server_tls_ca_file and mode in ("require", "verify-ca", "verify-full"):
        context.verify_mode = ssl.CERT_REQUIRED
        _load_ca(context, config.server_tls_ca_file)
    elif mode in ("verify-ca", "verify-full"):
        raise TlsProblem("ca_file", f'is needed with server_tls_sslmode = "{mode}"')
    else:
        context.verify_mode = ssl.CERT_NONE
    if config.server_tls_cert_file:
        _load_certificate(context, config.server_tls_cert_file, config.server_tls_key_file)
    _set_alpn(context, protocol)
    return EngineTls(mode, context, host)


def _context(kind: int, protocols: str, ciphers: str) -> ssl.SSLContext:
    context = ssl.SSLContext(kind)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    wanted = parse_versions(protocols)
    context.minimum_version, context.maximum_version = min(wanted), max(wanted)
    if ciphers != "default":
        try:
            context.set_ciphers(ciphers)
        except ssl.SSLError as error:
            raise TlsProblem("ciphers", f'"{ciphers}" names no cipher that OpenSSL has') from error
    return context


def parse_versions(text: str) -> list[ssl.TLSVersion]:
    """`secure` (1.2 and 1.3), or some of `tlsv1.2`, `tlsv1.3` with commas between. Raises TlsProblem."""
    names = [name.strip().lower() for name in text.split(",")]
    if names in (["secure"], ["all"], ["default"]):
        return list(VERSIONS.values())
    unknown = [name for name in names if name not in VERSIONS]
    if unknown:
        raise TlsProblem(
            "protocols", f'"{unknown[0]}" is no version offered; expected "secure", "tlsv1.2" or "tlsv1.3"'
        )
    return [VERSIONS[name] for name in names]


def _load_certificate(context: ssl.SSLContext, certificate: str, key: str) -> None:
    def no_password() -> str:
        # Without this OpenSSL would ask on the terminal.
        raise TlsProblem("key_file", f"{key or certificate} is encrypted; Turnout needs one that is not")

    for name, path in (("cert_file", certificate), ("key_file", key)):
        if path:
            _readable(name, path)
    try:
        context.load_cert_chain(certificate, key or None, password=no_password)
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", None) or str(error)
        raise TlsProblem(
            "cert_file", f"{certificate} with the key of {key or 'the same file'} cannot be used: {reason}"
        ) from error


def _load_ca(context: ssl.SSLContext, path: str) -> None:
    _readable("ca_file", path)
    try:
        context.load_verify_locations(cafile=path)
    except ssl.SSLError as error:
        raise TlsProblem("ca_file", f"{path} has no certificates in PEM form") from error


def _readable(key: str, path: str) -> None:
    try:
        with open(path, "rb"):
            return
    except OSError as error:
        raise TlsProblem(key, f"{path} cannot be read: {error.strerror}") from error


def _set_alpn(context: ssl.SSLContext, protocol: str) -> None:
    if protocol == "postgresql":
        context.set_alpn_protocols(["postgresql"])


def _first_certificate(path: str) -> bytes:
    """The owner's own certificate in DER: the first of a chain in PEM."""
    with open(path, encoding="latin-1") as file:
        text = file.read()
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    first = text[text.index(begin) : text.index(end) + len(end)]
    return ssl.PEM_cert_to_DER_cert(first)


def end_point_of(der: bytes | None) -> bytes:
    """`tls-server-end-point` (RFC 5929 section 4.1): the certificate's hash by its own signature's algorithm, by SHA-256
    where that is MD5 or SHA-1. Empty where the algorithm names no hash (Ed25519): then there is no channel binding."""
    if der is None:
        return b""
    try:
        algorithm = x509.load_der_x509_certificate(der).signature_hash_algorithm
    except (UnsupportedAlgorithm, ValueError):
        return b""
    if algorithm is None:
        return b""
    name = "sha256" if algorithm.name in ("md5", "sha1") else algorithm.name
    return hashlib.new(name, der).digest()


def peer_certificate(found: ssl.SSLObject) -> dict[str, Any] | None:
    """What a verified certificate of the peer says: the keys of `SSLObject.getpeercert`, and `cn` (the last
    commonName, or an empty text) and `dn` (RFC 2253, the most specific part first). None: no certificate was shown, or
    none was verified."""
    told: dict[str, Any] | None = found.getpeercert()
    if not told:
        return None
    der = found.getpeercert(binary_form=True)
    assert der is not None, "a certificate that has been verified is there"
    subject = x509.load_der_x509_certificate(der).subject
    names = subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return {**told, "cn": str(names[-1].value) if names else "", "dn": subject.rfc4514_string()}
