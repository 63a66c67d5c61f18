"""The dashboard's files, as they are in the package. They hold no secret and are for everybody; what they show is asked of
`/v1` with the viewer's own token. No request leaves the host: the policy of these pages allows this origin only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

from litestar import Request, Response, get
from litestar.exceptions import NotFoundException
from litestar.params import PathParameter

_FOLDER: Final = Path(__file__).with_name("dashboard")

_KINDS: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

_FILES: Final = {
    path.name: (path.read_bytes(), _KINDS[path.suffix]) for path in _FOLDER.iterdir() if path.suffix in _KINDS
}
"""Some forty kilobytes, read once. Nothing else can be asked for, whatever a path looks like."""

CONTENT_POLICY: Final = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""What these pages may load and do."""

OPEN: Final[dict[str, Any]] = {"is_open": True, "is_page": True}


@get("/", opt=OPEN, include_in_schema=False)
async def index() -> Response[bytes]:
    """The dashboard."""
    return _answer("index.html")


@get("/dashboard/{name:str}", opt=OPEN, include_in_schema=False)
async def file(request: Request[Any, Any, Any], name: Annotated[str, PathParameter()]) -> Response[bytes]:
    """One of its files."""
    if name not in _FILES:
        raise NotFoundException(f"{request.url.path} is no file of the dashboard")
    return _answer(name)


def _answer(name: str) -> Response[bytes]:
    body, kind = _FILES[name]
    return Response(body, headers={"Content-Type": kind})
