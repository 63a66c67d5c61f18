"""Tokens of an OpenID Connect provider: who signed them, for whom, and which role they give.

Signatures and claims are judged by PyJWT. Only signatures with a public key count (the config's list has no others), so that
nobody can make a token out of what everybody may read; the algorithm is the config's, never the token's alone. Keys come
from the issuer and are fetched again after an hour, or when a token names one that is not known: issuers change them.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import httpx
import jwt
import structlog

from proxy.config import JwtConfig
from proxy.control.roles import Role
from proxy.errors import ControlError, NotAllowed

_log = structlog.get_logger("turnout.control")

KEYS_S: Final = 3_600.0
"""How long fetched keys are used before they are asked for again."""

RETRY_S: Final = 10.0
"""The issuer is not asked more often than that, whatever tokens name."""

FETCH_TIMEOUT_S: Final = 5.0

DOCUMENT_BYTES_MAX: Final = 256 * 1024
"""Longest answer of an issuer."""

NAME_LENGTH_MAX: Final = 200


class BadToken(Exception):
    """The token is no good; `text` says why, without quoting it."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


class KeysMissing(ControlError):
    """The issuer's keys cannot be had, so nobody knows whether the token is good."""

    status = 503


class Oidc:
    """Verifies the tokens of one issuer."""

    def __init__(self, config: JwtConfig, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.config = config
        self._clock = clock
        self._keys: list[jwt.PyJWK] = []
        self._fetched_at = -KEYS_S
        self._tried_at = -KEYS_S
        self._fetching = asyncio.Lock()

    async def verify(self, token: str) -> tuple[str, Role]:
        """The caller's name and role. Raises BadToken; NotAllowed: a good token without a role; KeysMissing."""
        try:
            header = jwt.get_unverified_header(token)
        except jwt.PyJWTError:
            raise BadToken("the token is neither one of the config's nor a JWT") from None
        if header.get("alg") not in self.config.algorithms:
            raise BadToken("the token is signed in a way that [control.jwt] algorithms does not have")
        key = await self._key(header.get("kid"), str(header["alg"]))
        try:
            claims = jwt.decode(
                token,
                key,
                algorithms=list(self.config.algorithms),
                audience=self.config.audience,
                issuer=self.config.issuer,
                leeway=self.config.leeway_s,
                options={"require": ["exp", "iss", "aud"]},
            )
        except jwt.PyJWTError as error:
            raise BadToken(f"the token is not good: {error}") from None
        name = _claim(claims, self.config.name_claim)
        if not isinstance(name, str) or not name:
            raise BadToken(f"the token has no claim {self.config.name_claim!r}, which names its caller")
        return name[:NAME_LENGTH_MAX], self._role(name, claims)

    def _role(self, name: str, claims: dict[str, Any]) -> Role:
        """The highest that its values give."""
        found = _claim(claims, self.config.role_claim)
        listed = [found] if isinstance(found, str) else found if isinstance(found, list) else []
        values = {one for one in listed if isinstance(one, str)}
        for role, making in (
            (Role.ADMIN, self.config.admin),
            (Role.OPERATOR, self.config.operator),
            (Role.VIEWER, self.config.viewer),
        ):
            if values.intersection(making):
                return role
        raise NotAllowed(
            f"{name[:NAME_LENGTH_MAX]} has no role here",
            hint=f"the claim {self.config.role_claim!r} must have a value that [control.jwt] names",
        )

    # --- keys ---------------------------------------------------------------------------------------------------------

    async def _key(self, kid: object, algorithm: str) -> jwt.PyJWK:
        async with self._fetching:
            found = self._known(kid, algorithm)
            now = self._clock()
            is_old = now - self._fetched_at >= KEYS_S
            if (found is None or is_old) and now - self._tried_at >= RETRY_S:
                self._tried_at = now
                try:
                    self._keys = await self._fetch()
                    self._fetched_at = now
                except (OSError, ValueError, httpx.HTTPError, jwt.PyJWTError) as error:
                    _log.warning("the issuer's keys cannot be had", issuer=self.config.issuer, error=str(error))
                found = self._known(kid, algorithm)
        if found is not None:
            return found
        if not self._keys:
            raise KeysMissing(
                f"the keys of {self.config.issuer} cannot be had, so no token of it can be verified",
                hint="see [control.jwt] jwks_url, and the log",
            )
        raise BadToken("the token is signed with a key that its issuer does not publish")

    def _known(self, kid: object, algorithm: str) -> jwt.PyJWK | None:
        """By its id; without one, the only key there is."""
        fitting = [one for one in self._keys if one.algorithm_name == algorithm]
        if kid is None:
            return fitting[0] if len(fitting) == 1 else None
        return next((one for one in fitting if one.key_id == kid), None)

    async def _fetch(self) -> list[jwt.PyJWK]:
        """Raises OSError, ValueError, httpx.HTTPError, PyJWTError."""
        if self.config.jwks_file:
            return _parse(await asyncio.to_thread(Path(self.config.jwks_file).read_bytes))
        url = self.config.jwks_url
        async with httpx.AsyncClient(timeout=FETCH_TIMEOUT_S, follow_redirects=False) as client:
            if not url:
                about = json.loads(await _get(client, self.config.issuer.rstrip("/") + _DISCOVERY))
                if not isinstance(about, dict) or about.get("issuer") != self.config.issuer:
                    raise ValueError(f"{self.config.issuer} says that it is another issuer")
                url = str(about.get("jwks_uri", ""))
            return _parse(await _get(client, url))


_DISCOVERY: Final = "/.well-known/openid-configuration"
"""OpenID Connect Discovery 1.0 section 4."""


async def _get(client: httpx.AsyncClient, url: str) -> bytes:
    async with client.stream("GET", url) as answer:
        answer.raise_for_status()
        data = b""
        async for piece in answer.aiter_bytes():
            data += piece
            if len(data) > DOCUMENT_BYTES_MAX:
                raise ValueError(f"{url} answered more than {DOCUMENT_BYTES_MAX} bytes")
        return data


def _parse(data: bytes) -> list[jwt.PyJWK]:
    """The keys that can be used; others are for other purposes or unknown to the library."""
    found = json.loads(data)
    if not isinstance(found, dict) or not isinstance(found.get("keys"), list):
        raise ValueError("what came is no set of keys (JWKS)")
    keys = []
    for one in found["keys"]:
        if not isinstance(one, dict) or one.get("kty") == "oct" or one.get("use", "sig") != "sig":
            continue  # a shared secret among published keys would be nobody's
        try:
            keys.append(jwt.PyJWK(one))
        except jwt.PyJWTError as error:
            _log.info("a key of the issuer is left out", kid=str(one.get("kid"))[:100], error=str(error))
    return keys


def _claim(claims: dict[str, Any], path: str) -> Any:
    """`realm_access.roles`: a claim, or one inside of it. A claim whose own name has dots is found too."""
    if path in claims:
        return claims[path]
    found: Any = claims
    for part in path.split("."):
        if not isinstance(found, dict):
            return None
        found = found.get(part)
    return found
