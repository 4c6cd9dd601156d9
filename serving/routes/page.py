"""The page at `/`: a person drops an image, and sees what the model says. Its files are read once, at the start."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, HTTPException, Request, Response

PAGE = Path(__file__).parents[1] / "page"
MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' data: blob:",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
    "require-trusted-types-for": "'script'",  # browsers refuse text that is set as HTML
    "trusted-types": "'none'",
}
HEADERS = {
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in POLICY.items()),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # kept, but asked for by its ETag: a new server never meets an old script
}


@dataclass(frozen=True)
class Asset:
    """A file of the page, and what a response says of it."""

    content: bytes
    media_type: str
    etag: str


def read_assets(directory: Path = PAGE) -> dict[str, Asset]:
    """Return the files of the page by their names."""
    return {path.name: _read(path) for path in directory.iterdir() if path.suffix in MEDIA_TYPES}


def _read(path: Path) -> Asset:
    content = path.read_bytes()
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    return Asset(content, f"{MEDIA_TYPES[path.suffix]}; charset=utf-8", etag)


ASSETS = read_assets()
router = APIRouter(include_in_schema=False)


@router.api_route("/", methods=["GET", "HEAD"])
async def index(request: Request) -> Response:
    """Return the page. Its links are relative: it works below any path that a proxy gives it."""
    return _respond(request, "index.html")


@router.api_route("/page/{name}", methods=["GET", "HEAD"])
async def asset(request: Request, name: str) -> Response:
    """Return a file of the page."""
    return _respond(request, name)


def _respond(request: Request, name: str) -> Response:
    if name not in ASSETS:
        raise HTTPException(404, "the page has no such file")
    asset = ASSETS[name]
    headers = {**HEADERS, "ETag": asset.etag}
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if asset.etag in known:
        return Response(status_code=304, headers=headers)
    return Response(asset.content, media_type=asset.media_type, headers=headers)
