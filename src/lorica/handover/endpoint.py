"""A server of OpenAI's API: requests to it, and what is refused of its answers."""

import json
import ssl
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from lorica import strict_json
from lorica.errors import ConfigError, LoricaError, ResourceError

TIMEOUT = 120.0
"""Seconds for one answer."""
MAX_BYTES = 16 * 2**20


class EndpointError(LoricaError):
    """A server refused a request, or answered what cannot be read."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """The key is for the server that the user named, not for where that server points."""

    def redirect_request(self, req, fp, code, msg, headers, newurl) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirects)


class Endpoint:
    """One server. url: with or without /v1. key: sent as a bearer token; no message has it.

    Raises: ConfigError if they are no URL and no key.
    """

    def __init__(self, url: str, key: str | None = None):
        _check_url(url)
        url = url.rstrip("/")
        self.url = url if url.endswith("/v1") else f"{url}/v1"
        self._headers, self._key = {"Content-Type": "application/json"}, key
        if key:
            if not (key.isascii() and key.isprintable()):
                raise ConfigError(
                    "the key in OPENAI_API_KEY has characters that a header cannot have.",
                    fix="set it to the key alone, without a line break",
                )
            self._headers["Authorization"] = f"Bearer {key}"

    def models(self) -> list[dict[str, Any]]:
        """What the server lists. Raises: ResourceError, EndpointError."""
        listing = self.get(f"{self.url}/models")
        models = listing.get("data") if isinstance(listing, dict) else None
        if not isinstance(models, list):
            raise EndpointError(f"{self.url}/models lists no models.", fix="check the URL")
        return [m for m in models if isinstance(m, dict) and isinstance(m.get("id"), str)]

    def adapters(self) -> dict[int, str]:
        """The ids of llama.cpp's adapters and their files; {}: it is another server."""
        try:
            listing = self.get(self.url.removesuffix("/v1") + "/lora-adapters")
        except EndpointError:
            return {}
        items = listing if isinstance(listing, list) else []
        return {
            item["id"]: str(item.get("path") or "")
            for item in items
            if isinstance(item, dict) and type(item.get("id")) is int
        }

    def get(self, url: str) -> Any:
        return self._send(urllib.request.Request(url, headers=self._headers))

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        data = json.dumps(body).encode()
        answer = self._send(urllib.request.Request(self.url + path, data, self._headers))
        if not isinstance(answer, dict):
            raise EndpointError(f"{self.url}{path} gave no JSON object.", fix="check the URL")
        return answer

    def _send(self, request: urllib.request.Request) -> Any:
        """Raises: ResourceError if nobody answers; EndpointError for a refusal."""
        url = request.full_url
        try:
            with _OPENER.open(request, timeout=TIMEOUT) as reply:
                return strict_json.parse(_read(reply, url), unique=False)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error, url) from None
        except OSError as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, ssl.SSLError):
                what = f"{url} cannot be reached by https: {self._clean(reason)}."
                fix = "name the file of its certificate in SSL_CERT_FILE, or check http or https"
            else:
                what, fix = f"nobody answers at {url}: {self._clean(reason)}.", "start the server"
            raise ResourceError(what, fix=fix) from None
        except HTTPException as error:
            raise EndpointError(
                f"{url} does not answer in HTTP: {self._clean(error)}.", fix="check the URL"
            ) from None
        except ValueError as error:
            raise EndpointError(
                f"{url} gave no JSON: {self._clean(error)}.", fix="check the URL"
            ) from None

    def _refusal(self, error: urllib.error.HTTPError, url: str) -> EndpointError:
        if 300 <= error.code < 400:
            place = self._clean(error.headers.get("Location", "no place"))
            return EndpointError(
                f"{url} redirects to {place}; redirects are not followed.",
                fix="pass the URL of the server itself",
            )
        try:
            why = self._clean(error.read(2000).decode(errors="replace"))
        except (OSError, HTTPException):
            why = ""
        return EndpointError(
            f"{url} refused a request: status {error.code}.",
            why=why or "it does not say",
            fix="check the name of the model, and the key in OPENAI_API_KEY"
            if error.code in (401, 403, 404)
            else "see what the server logs",
        )

    def _clean(self, words: object) -> str:
        """What a server or a library says, in one line, without the key."""
        text = str(words).replace(self._key, "***") if self._key else str(words)
        return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))[:500]


def _check_url(url: str) -> None:
    """Raises: ConfigError if it is no URL of a server, or holds a password."""
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        is_good = is_good and not (parts.query or parts.fragment or "@" in parts.netloc)
    except ValueError:
        is_good = False
    if not (is_good and url.isascii() and url.isprintable() and " " not in url):
        without_password = url.rpartition("@")[2]  # a password may stand before it
        raise ConfigError(
            f"--endpoint is {without_password!r:.200}, which is no URL of a server.",
            fix="--endpoint http://127.0.0.1:8000 (a key goes into OPENAI_API_KEY)",
        )


def _read(reply: Any, url: str) -> bytes:
    """The body. Raises: EndpointError if it is too large; TimeoutError if it drips."""
    data, end = bytearray(), time.monotonic() + TIMEOUT
    while block := reply.read1(2**16):
        data += block
        if len(data) > MAX_BYTES:
            raise EndpointError(
                f"{url} answers with more than {MAX_BYTES:,} bytes.", fix="check the URL"
            )
        if time.monotonic() > end:
            raise TimeoutError(f"its answer is not whole after {TIMEOUT:.0f} seconds")
    return bytes(data)
