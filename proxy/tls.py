"""TLS contexts out of what the config says, and what a certificate says of its owner.

Links use OpenSSL as `proxy/openssl.pyx` calls it; the libraries that Turnout's own connections are made with take an
`ssl.SSLContext`. Refuses to know sockets, protocols' messages, or who asks. Files are read when a context is made, so a
new one has the certificates as they are then.
"""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypeAlias, TypeVar, cast

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from proxy.openssl import Context, KeyEncrypted, OpenSSLError

if TYPE_CHECKING:
    from proxy.config import ControlConfig, EngineConfig, ListenerConfig

TlsMode = Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"]

TlsSetting = Literal[
    "disable",
    "allow",
    "prefer",
    "require",
    "verify-ca",
    "verify-full",
    "DISABLED",
    "PREFERRED",
    "REQUIRED",
    "VERIFY_CA",
    "VERIFY_IDENTITY",
]
"""A mode as configs spell it: libpq's names, or those of MySQL's --ssl-mode."""

MYSQL_NAMES: Final[Mapping[str, TlsMode]] = {
    "DISABLED": "disable",
    "PREFERRED": "prefer",
    "REQUIRED": "require",
    "VERIFY_CA": "verify-ca",
    "VERIFY_IDENTITY": "verify-full",
}


def mode_of(setting: TlsSetting) -> TlsMode:
    """One name for each meaning."""
    return MYSQL_NAMES.get(setting) or cast("TlsMode", setting)


AnyContext = TypeVar("AnyContext", Context, ssl.SSLContext)

VERSIONS: Final = {
    "tlsv1.2": ssl.TLSVersion.TLSv1_2,
    "tlsv1.3": ssl.TLSVersion.TLSv1_3,
}
"""Older versions are left out: no supported client needs them, and OpenSSL 3 refuses them by default."""

_CIPHERS: Final = "@SECLEVEL=2:ECDH+AESGCM:ECDH+CHACHA20:ECDH+AES:DHE+AES:!aNULL:!eNULL:!aDSS:!SHA1:!AESCCM"
"""What Python's `ssl` has by default: forward secrecy, no SHA-1."""

_ALPN: Final = {"postgresql": ("postgresql",)}
"""By protocol."""

_ATTRIBUTES: Final = {
    x509.NameOID.COMMON_NAME: "commonName",
    x509.NameOID.COUNTRY_NAME: "countryName",
    x509.NameOID.LOCALITY_NAME: "localityName",
    x509.NameOID.STATE_OR_PROVINCE_NAME: "stateOrProvinceName",
    x509.NameOID.ORGANIZATION_NAME: "organizationName",
    x509.NameOID.ORGANIZATIONAL_UNIT_NAME: "organizationalUnitName",
    x509.NameOID.DOMAIN_COMPONENT: "domainComponent",
    x509.NameOID.EMAIL_ADDRESS: "emailAddress",
    x509.NameOID.SERIAL_NUMBER: "serialNumber",
    x509.NameOID.USER_ID: "userId",
}
"""Parts of a name as OpenSSL calls them; others go by their number."""


class TlsProblem(Exception):
    """A context cannot be made; `key` is the end of the setting's name that is wrong (`cert_file`, say)."""

    def __init__(self, key: str, text: str) -> None:
        super().__init__(text)
        self.key = key
        self.text = text


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """Of a context; paths are empty where there is no such file."""

    protocols: str
    ciphers: str
    certificate: str = ""
    key: str = ""
    ca: str = ""
    """Empty: the peer's certificate is not verified, and none is asked for of a client."""
    demands_certificate: bool = True
    """Of a client that is verified."""
    checks_name: bool = False
    """Of a server that is verified."""
    alpn: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ListenerTls:
    """TLS towards the clients of one port."""

    mode: TlsMode
    context: Context | None
    """None: not offered."""
    channel_binding: bytes = b""
    """`tls-server-end-point` of our certificate; empty where it has none."""

    @property
    def is_required(self) -> bool:
        return self.mode in ("require", "verify-ca", "verify-full")


@dataclass(frozen=True, slots=True)
class TlsWithEngine(Generic[AnyContext]):
    """TLS towards one engine."""

    mode: TlsMode
    context: AnyContext | None
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
EngineTls: TypeAlias = TlsWithEngine[Context]
"""Of links."""
LibraryTls: TypeAlias = TlsWithEngine[ssl.SSLContext]
"""Of connections that a library opens."""
NO_ENGINE_TLS: Final[TlsWithEngine[Any]] = TlsWithEngine("disable", None, "")


def listener_tls(config: ListenerConfig) -> ListenerTls:
    """Raises TlsProblem."""
    mode = mode_of(config.client_tls_sslmode)
    if mode == "disable":
        return ListenerTls(mode, None)
    if not config.client_tls_cert_file:
        raise TlsProblem("cert_file", f'is needed with client_tls_sslmode = "{mode}"')
    is_verified = mode in ("verify-ca", "verify-full")
    if is_verified and not config.client_tls_ca_file:
        raise TlsProblem("ca_file", f'is needed with client_tls_sslmode = "{mode}"')
    wanted = _Wanted(
        protocols=config.client_tls_protocols,
        ciphers=config.client_tls_ciphers,
        certificate=config.client_tls_cert_file,
        key=config.client_tls_key_file,
        ca=config.client_tls_ca_file,
        # Below verify-ca a client may show none, as with PostgreSQL's ssl_ca_file; one that is shown is verified.
        demands_certificate=is_verified,
        alpn=_ALPN.get(config.protocol, ()),
    )
    context = _link_context(wanted, is_server=True)
    return ListenerTls(mode, context, end_point_of(_first_certificate(config.client_tls_cert_file)))


def control_tls(config: ControlConfig) -> ssl.SSLContext | None:
    """Of the control port; None: it has no TLS. Raises TlsProblem."""
    if not config.tls_cert_file:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    load_control_files(context, config)
    if config.tls_client_cert != "none":
        is_required = config.tls_client_cert == "required"
        context.verify_mode = ssl.CERT_REQUIRED if is_required else ssl.CERT_OPTIONAL
    return context


def load_control_files(context: ssl.SSLContext, config: ControlConfig) -> None:
    """Read certificate, key and CA into a context; connections made from then on have them. Raises TlsProblem."""
    # The same checks as for listeners, and in the same words.
    _load_certificate(Context(is_server=True), config.tls_cert_file, config.tls_key_file)
    try:
        context.load_cert_chain(config.tls_cert_file, config.tls_key_file or None, password="")
    except (OSError, ValueError) as error:
        raise TlsProblem("cert_file", f"{config.tls_cert_file} cannot be used: {error}") from error
    if config.tls_ca_file:
        _readable("ca_file", config.tls_ca_file)
        try:
            context.load_verify_locations(cafile=config.tls_ca_file)
        except (OSError, ValueError) as error:
            raise TlsProblem("ca_file", f"{config.tls_ca_file} has no certificates in PEM form") from error


def receiver_tls(ca_file: str) -> ssl.SSLContext | None:
    """Of those who are told of alerts; None: the certificates that everybody knows. Raises TlsProblem."""
    if not ca_file:
        return None
    _readable("ca_file", ca_file)
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ValueError) as error:
        raise TlsProblem("ca_file", f"{ca_file} has no certificates in PEM form") from error


def engine_tls(config: EngineConfig, protocol: str) -> EngineTls:
    """Raises TlsProblem."""
    wanted = _wanted_of(config, protocol)
    context = _link_context(wanted, is_server=False) if wanted is not None else None
    return _engine_tls(config, context)


def library_tls(config: EngineConfig, protocol: str) -> LibraryTls:
    """Raises TlsProblem."""
    wanted = _wanted_of(config, protocol)
    return _engine_tls(config, _library_context(wanted) if wanted is not None else None)


def _engine_tls(config: EngineConfig, context: AnyContext | None) -> TlsWithEngine[AnyContext]:
    mode = mode_of(config.server_tls_sslmode) if context is not None else "disable"
    return TlsWithEngine(mode, context, config.address.rpartition(":")[0].strip("[]"))


def _wanted_of(config: EngineConfig, protocol: str) -> _Wanted | None:
    """Libpq's meanings: `require` with a CA file verifies like `verify-ca`; `allow` and `prefer` verify nothing, for they
    would go on without TLS. None: no TLS. Raises TlsProblem."""
    mode = mode_of(config.server_tls_sslmode)
    if mode == "disable":
        return None
    if mode in ("verify-ca", "verify-full") and not config.server_tls_ca_file:
        raise TlsProblem("ca_file", f'is needed with server_tls_sslmode = "{mode}"')
    return _Wanted(
        protocols=config.server_tls_protocols,
        ciphers=config.server_tls_ciphers,
        certificate=config.server_tls_cert_file,
        key=config.server_tls_key_file,
        ca=config.server_tls_ca_file if mode in ("require", "verify-ca", "verify-full") else "",
        checks_name=mode == "verify-full",
        alpn=_ALPN.get(protocol, ()),
    )


def _link_context(wanted: _Wanted, *, is_server: bool) -> Context:
    context = Context(is_server=is_server)
    versions = parse_versions(wanted.protocols)
    context.set_versions(min(versions), max(versions))
    try:
        context.set_ciphers(_CIPHERS if wanted.ciphers == "default" else wanted.ciphers)
    except OpenSSLError as error:
        raise TlsProblem("ciphers", f'"{wanted.ciphers}" names no cipher that OpenSSL has') from error
    if wanted.certificate:
        _load_certificate(context, wanted.certificate, wanted.key)
    if wanted.ca:
        _readable("ca_file", wanted.ca)
        try:
            context.load_ca(wanted.ca)
        except OpenSSLError as error:
            raise TlsProblem("ca_file", f"{wanted.ca} has no certificates in PEM form") from error
        context.verify_peer(is_required=wanted.demands_certificate, checks_name=wanted.checks_name)
    if wanted.alpn:
        context.set_alpn(wanted.alpn)
    return context


def _library_context(wanted: _Wanted) -> ssl.SSLContext:
    """Of a client. The check of the config has told what is wrong by `_link_context`, in better words than these."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = wanted.checks_name
    context.verify_mode = ssl.CERT_REQUIRED if wanted.ca else ssl.CERT_NONE
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    versions = parse_versions(wanted.protocols)
    context.minimum_version, context.maximum_version = min(versions), max(versions)
    try:
        if wanted.ciphers != "default":
            context.set_ciphers(wanted.ciphers)
        if wanted.certificate:
            context.load_cert_chain(wanted.certificate, wanted.key or None, password="")
        if wanted.ca:
            context.load_verify_locations(cafile=wanted.ca)
    except (OSError, ValueError) as error:
        raise TlsProblem("cert_file", f"the files cannot be used: {error}") from error
    if wanted.alpn:
        context.set_alpn_protocols(list(wanted.alpn))
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


def _load_certificate(context: Context, certificate: str, key: str) -> None:
    for name, path in (("cert_file", certificate), ("key_file", key)):
        if path:
            _readable(name, path)
    try:
        context.load_certificate(certificate, key or certificate)
    except KeyEncrypted as error:
        raise TlsProblem("key_file", f"{key or certificate} is encrypted; Turnout needs one that is not") from error
    except OpenSSLError as error:
        raise TlsProblem(
            "cert_file", f"{certificate} with the key of {key or 'the same file'} cannot be used: {error}"
        ) from error


def _readable(key: str, path: str) -> None:
    try:
        with open(path, "rb"):
            return
    except OSError as error:
        raise TlsProblem(key, f"{path} cannot be read: {error.strerror}") from error


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


def peer_certificate(der: bytes | None) -> dict[str, Any] | None:
    """What a verified certificate of the peer says: `subject` and `issuer` in the form of `ssl.SSLObject.getpeercert`.
    None: none was shown."""
    if der is None:
        return None
    certificate = x509.load_der_x509_certificate(der)
    return {"subject": _name(certificate.subject), "issuer": _name(certificate.issuer)}


def _name(name: x509.Name) -> tuple[tuple[tuple[str, str], ...], ...]:
    return tuple(
        tuple((_ATTRIBUTES.get(one.oid, one.oid.dotted_string), str(one.value)) for one in part) for part in name.rdns
    )
