"""The page at `/`: its static files, the URL path of each, and the headers they are served with.

index.html lies at `/`, all else below `/page/`. There is no build step. The page loads nothing from
elsewhere, and asks only /v1/models, /v1/completions and /v1/chat/completions of its own server.
"""

from dataclasses import dataclass
from pathlib import Path

from lorica import plain_files

HEADERS = {
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "connect-src 'self'",
            "img-src 'self' data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
        )
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
"""Of every file of the page. What models and adapters write is untrusted: should it ever become
markup, the browser still refuses to run it."""
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class PageFile:
    media_type: str
    content: bytes


def read_files() -> dict[str, PageFile]:
    """The files of the page by URL path: "/", "/page/app.js", ..."""
    files = {}
    for name in plain_files.names_in(FOLDER):
        media_type = MEDIA_TYPES.get(Path(name).suffix)
        if media_type is not None:
            path = "/" if name == "index.html" else f"/page/{name}"
            files[path] = PageFile(media_type, plain_files.read_bytes(FOLDER / name, follow=True))
    return files
