"""Continuous batching: rows share forward passes, leave when they end, and others take their place.

    decoder = Decoder(model, slots=8, max_length=512)
    rows = decoder.admit([Request(prompt=ids, sampling=Sampling(), stops=stops)])
    while decoder.rows:
        for row in decoder.step():
            print(row.tokens[-1])

A step is one forward pass: of tokens of prompts, or of one token of each row that decodes; the two
alternate while there is work for both. Slots are in the order [rows that decode | rows whose prompt
is being read], so that every pass covers consecutive slots. Of the second, only the first may have
been read in part.

Not thread-safe: one thread owns a decoder and its model.
"""

import logging
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from lorica.errors import ConfigError
from lorica.generation.choice import Chooser
from lorica.generation.forward import PADDING, SlotForward
from lorica.generation.row import Request, Row
from lorica.generation.slots import padded_left, slot_support

Acting = Callable[[Sequence[Hashable]], AbstractContextManager[object]]
"""(adapter of each row of a pass) -> a block around the pass, in which they act."""
CHUNK = 256
FAILED = "the model failed at this request."
log = logging.getLogger("lorica")


class Decoder:
    """Rows of one model, in `slots` slots of `max_length` tokens (prompt and answer) each.

    acting: entered around every forward pass. chunk: most tokens of prompts of a pass.
    isolates: after a pass that failed, each of its rows has one of its own, and those that fail
    again end in an error. Else the step raises what the pass raised.
    The model must be in eval mode. Raises: ConfigError for a model that slots cannot carry, or not
    for rows of that length; see `slots.slot_support`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        slots: int,
        max_length: int,
        acting: Acting = lambda adapters: nullcontext(),
        chunk: int = CHUNK,
        isolates: bool = False,
    ):
        support = slot_support(model)
        if support.batching.refused is not None:
            raise ConfigError(f"this model decodes one batch at a time: {support.batching.refused}")
        limit = support.batching.shared
        if limit is not None and max_length > limit and slots > 1:
            cause = support.batching.causes["shared"]
            raise ConfigError(
                f"rows of more than {limit} tokens ({cause}) cannot share a forward pass.",
                fix=f"lower max_length from {max_length} to {limit}",
            )
        self.slots, self.max_length, self._acting, self._chunk = slots, max_length, acting, chunk
        self._isolates = isolates
        self._pads = support.masks == "positions"
        self._forward = SlotForward(model, slots, max_length, support.masks)
        self._rows: list[Row] = []
        self._decoding = 0  # the first of `_rows`; the prompts of the others are being read
        self._chooser: Chooser | None = None  # of the rows that decode
        self._decodes_next = False

    @property
    def free(self) -> int:
        return self.slots - len(self._rows)

    @property
    def rows(self) -> Sequence[Row]:
        return self._rows

    def admit(self, requests: Sequence[Request], *, ahead: bool = False) -> list[Row]:
        """Give each request a slot; its prompt is read by the next steps.

        ahead: before prompts that came earlier and of which nothing was read yet; but no prompt is
            overtaken by more rows than there are slots, and none by another that went ahead.

        Raises: ConfigError if there are more requests than free slots, or one is too long.
        """
        if len(requests) > self.free:
            raise ConfigError(f"{len(requests)} requests were given for {self.free} free slots.")
        for request in requests:
            longest = len(request.prompt) + request.sampling.max_new_tokens
            if not request.prompt or longest > self.max_length:
                raise ConfigError(
                    f"a prompt of {len(request.prompt)} tokens with up to "
                    f"{request.sampling.max_new_tokens} new ones does not fit {self.max_length}.",
                )
        rows = [Row(request, patience=0 if ahead else self.slots) for request in requests]
        for row in rows:
            self._rows.insert(self._place(ahead), row)
        return rows

    def _place(self, ahead: bool) -> int:
        """Where a new row goes. Rows of which nothing was read have nothing in their slots, and
        can be moved."""
        place = len(self._rows)
        while ahead and place > self._decoding:
            before = self._rows[place - 1]
            if before.read or not before.patience:
                break
            before.patience -= 1
            place -= 1
        return place

    def step(self) -> list[Row]:
        """One forward pass. Returns: the rows that got a token, or failed; those that ended have
        left their slot."""
        if not self._rows:
            return []
        reading = self._decoding < len(self._rows)
        decodes = self._decoding > 0 and (self._decodes_next or not reading)
        self._decodes_next = not decodes
        with torch.no_grad():
            rows = self._decode() if decodes else self._prefill()
        for row in rows:
            if row.ended:
                self._remove(row)
        return rows

    def cancel(self, row: Row) -> None:
        """End a row, whatever its state."""
        if row.ended is None:
            row.ended = "cancelled"
            self._remove(row)

    def _decode(self) -> list[Row]:
        """One token for every row that decodes."""
        rows = self._rows[: self._decoding]
        inputs = [[row.tokens[-1] for row in rows], [row.read for row in rows]]
        ids, positions = torch.tensor(inputs, device=self._forward.device).unsqueeze(-1)
        logits = self._pass(0, rows, ids, positions, max(inputs[1]) + 1)
        for row in rows:
            row.read += 1
        if self._chooser is None:
            self._chooser = self._chooser_of(rows)
        self._add_tokens(rows, self._chooser, logits)
        return rows

    def _prefill(self) -> list[Row]:
        """Read the next tokens of prompts. Returns: those that are complete, or failed."""
        rows, width = self._next_prompts()
        parts = [list(row.unread[:width]) for row in rows]
        places = [
            list(range(row.read, row.read + len(part)))
            for row, part in zip(rows, parts, strict=True)
        ]
        both = torch.tensor([padded_left(parts, 0), padded_left(places, PADDING)])
        ids, positions = both.to(self._forward.device)
        longest = max(place[-1] for place in places) + 1
        logits = self._pass(self._decoding, rows, ids, positions, longest)
        for row, part in zip(rows, parts, strict=True):
            row.read += len(part)
        if not rows[0].is_prefilled:
            return [row for row in rows if row.ended]
        self._decoding += len(rows)
        self._add_tokens(rows, self._chooser_of(rows), logits)
        self._chooser = None
        return rows

    def _pass(
        self, first: int, rows: Sequence[Row], ids: Tensor, positions: Tensor, longest: int
    ) -> Tensor:
        """Logits (M, V) of the last token of rows in consecutive slots, the first in `first`.

        NaN for a row that failed by itself, which is ended; see `isolates`.
        """

        def logits_of(start: int, stop: int) -> Tensor:
            with self._acting([row.request.adapter for row in rows[start:stop]]):
                return self._forward.last_logits(
                    first + start, ids[start:stop], positions[start:stop], longest
                )

        try:
            return logits_of(0, len(rows))
        except Exception:
            if not self._isolates:
                raise
            log.exception("a pass failed for %d rows", len(rows))
        alone = {} if len(rows) == 1 else _alone(len(rows), lambda i: logits_of(i, i + 1))
        for i in set(range(len(rows))) - set(alone):
            rows[i].fail(FAILED)
        width = max((len(logits) for logits in alone.values()), default=1)
        nothing = torch.full([width], torch.nan, device=ids.device)
        return torch.stack([alone.get(i, nothing).to(nothing) for i in range(len(rows))])

    def _next_prompts(self) -> tuple[list[Row], int]:
        """(rows whose prompts a pass completes, or one whose prompt is longer; tokens of each)."""
        waiting = self._rows[self._decoding :]
        rows, width = waiting[:1], len(waiting[0].unread)
        if width > self._chunk or not self._pads:
            return rows, self._chunk
        for row in waiting[1:]:
            wider = max(width, len(row.unread))
            if wider * (len(rows) + 1) > self._chunk:
                break
            rows, width = [*rows, row], wider
        return rows, width

    def _add_tokens(self, rows: Sequence[Row], chooser: Chooser, logits: Tensor) -> None:
        tokens = chooser.tokens(logits)
        for i, logprobs in chooser.logprobs(logits, tokens).items():
            rows[i].logprobs.append(logprobs)
        for row, token in zip(rows, tokens, strict=True):
            try:
                row.add(token)
            except Exception:
                if not self._isolates:
                    raise
                log.exception("the text of a row failed")
                row.fail(FAILED)

    def _chooser_of(self, rows: Sequence[Row]) -> Chooser:
        return Chooser(
            [row.request.sampling for row in rows],
            [row.draws for row in rows],
            [row.request.logprobs for row in rows],
            self._forward.device,
        )

    def _remove(self, row: Row) -> None:
        """Free the slot of a row. The last row that decodes moves into the gap."""
        slot, cache = self._rows.index(row), self._forward.cache
        if row.ended in ("error", "cancelled"):
            cache.clear(slot)
        if slot < self._decoding:
            self._chooser = None
            self._decoding -= 1
            last = self._rows[self._decoding]
            if last is not row:
                cache.move(self._decoding, slot, last.read)
                self._rows[slot] = last
            slot = self._decoding
        # The prompts behind move up by one; only the first of them may have been read in part.
        del self._rows[slot]
        if slot < len(self._rows) and self._rows[slot].read:
            cache.move(slot + 1, slot, self._rows[slot].read)


def _alone(rows: int, logits_of: Callable[[int], Tensor]) -> dict[int, Tensor]:
    """Logits (V,) of the rows that have a pass of their own without failing, by number."""
    logits: dict[int, Tensor] = {}
    for i in range(rows):
        try:
            logits[i] = logits_of(i)[0]
        except Exception:
            log.exception("a row failed in a pass of its own")
    return logits
