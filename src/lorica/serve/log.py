"""The server's log: a line for each request, and tracebacks without the values in them.

An exception's message may quote a prompt or a key, so only its type and its place are written.
"""

import logging
import traceback

log = logging.getLogger("lorica.serve")


def write_bug(request_id: str, error: BaseException) -> None:
    """Log where a request failed."""
    where = "".join(traceback.format_tb(error.__traceback__)[-8:])
    log.error("request %s failed with %s at:\n%s", request_id, type(error).__name__, where)
