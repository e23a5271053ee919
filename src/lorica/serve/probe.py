"""A probe of a model that has failed: does it answer at all?"""

import logging

from lorica.generation.decoder import Decoder
from lorica.generation.row import Request, Row

log = logging.getLogger("lorica.serve")


def answers(decoder: Decoder, request: Request) -> bool:
    """Whether a decoder without rows brings `request` to its end."""
    rows: list[Row] = []
    try:
        rows = decoder.admit([request])
        while rows[0].ended is None:
            decoder.step()
    except Exception:
        log.exception("a probe failed")
        for row in rows:
            decoder.cancel(row)
    return bool(rows) and rows[0].ended in ("stop", "length")
