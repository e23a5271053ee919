"""What is refused before a body is read: a large header, and any body without a key."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lorica.serve.envelope import Failure, failure_of_status

MAX_HEADER_BYTES = 32 * 2**10


def refusal_of_size(scope: Mapping[str, Any]) -> Failure | None:
    """Refuse a header that is too large: uvicorn only does if it comes in several segments."""
    size = sum(len(name) + len(value) + 4 for name, value in scope["headers"])
    if size + len(scope["path"]) + len(scope["query_string"]) <= MAX_HEADER_BYTES:
        return None
    return failure_of_status(431, f"the header is larger than {MAX_HEADER_BYTES:,} bytes.")


def refusal_of_body(method: str, headers: dict[bytes, str]) -> Failure | None:
    """Refuse what is no GET, or has a body: it is not read, so that no stranger fills memory."""
    if method not in ("GET", "HEAD"):
        message = f"{method:.20} is not allowed here; use GET."
        return replace(failure_of_status(405, message), headers=(("Allow", "GET"),))
    if b"transfer-encoding" in headers or headers.get(b"content-length", "0").strip("0"):
        return failure_of_status(413, "a request without a key may not have a body.")
    return None
