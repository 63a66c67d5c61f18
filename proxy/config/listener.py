"""The table of a port for clients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from protocols.wire import PackingName
from proxy.config.table import Table
from proxy.tls import TlsSetting


class ListenerConfig(Table, frozen=True, kw_only=True):
    """A port for clients. A service is reached on every listener of its protocol, by the database name."""

    protocol: Literal["postgresql", "mysql"]
    """Protocol spoken on this port."""
    listen: str
    """Address and port for clients."""
    client_tls_sslmode: TlsSetting = "disable"
    """TLS with clients. `disable`: not offered. `allow`, `prefer`: a client that asks for it gets it. `require`: a client
    must use it. `verify-ca`, `verify-full`: and must show a certificate that the CA file vouches for. A CancelRequest may
    always come without. On a MySQL port the names of its --ssl-mode mean the same: `DISABLED`, `PREFERRED`, `REQUIRED`,
    `VERIFY_CA`, `VERIFY_IDENTITY`."""
    client_tls_cert_file: str = ""
    """Certificate, and what leads from it to the CA, in PEM form; relative to the config file. Read again at each reload,
    like the other files."""
    client_tls_key_file: str = ""
    """Its private key; empty: in the same file."""
    client_tls_ca_file: str = ""
    """CA certificates that vouch for clients. Below `verify-ca` a client may show no certificate, but none that is not
    vouched for."""
    client_tls_protocols: str = "secure"
    """Versions of TLS: `secure` (1.2 and 1.3), `tlsv1.2`, `tlsv1.3`."""
    client_tls_ciphers: str = "default"
    """Ciphers of TLS 1.2 as OpenSSL lists them; `default`: OpenSSL's choice."""
    client_compression: Literal["none", "zlib", "zstd", "zlib,zstd"] = "zlib,zstd"
    """What clients of a MySQL port may compress their connection by, if they ask for it: zlib (`--compress`,
    `--compression-algorithms=zlib`), zstd (`--compression-algorithms=zstd`). PostgreSQL has no compression."""
    proxy_protocol: list[str] = []
    """Networks of load balancers (`10.0.0.0/8`, `::1/128`). A connection from one of them must begin with a header of the
    PROXY protocol, version 1 or 2, and counts as coming from the address in it; others must not."""

    @property
    def packings(self) -> Sequence[PackingName]:
        """`client_compression` as a login takes it."""
        names: tuple[PackingName, ...] = ("zlib", "zstd")
        return [name for name in names if name in self.client_compression.split(",")]
