"""An answer on its way through the engine: from the queue to a slot, and out in pieces."""

from collections.abc import Callable
from dataclasses import dataclass

from lorica.generation.choice import TokenLogprobs
from lorica.generation.row import Request, Row
from lorica.serve.answers import StreamedAnswer
from lorica.serve.exchange import Job, Piece, TokenLogprob
from lorica.serve.models import Target
from lorica.serve.scheduler import Ticket


@dataclass(eq=False)
class Work:
    """row: None until it has a slot. sent, sent_logprobs: tokens, and those whose log-probabilities
    are in pieces already."""

    job: Job
    target: Target
    ticket: Ticket
    request: Request
    answer: StreamedAnswer
    row: Row | None = None
    sent: int = 0
    sent_logprobs: int = 0

    def send(self, text_of: Callable[[int], str]) -> None:
        """Put the text that is new and final into the answer, with the tokens since then.

        Log-probabilities are of the tokens whose whole text is in the answer: neither of a stop
        token, nor of what a stop string cuts off.
        """
        row = self.row
        assert row is not None and row.text is not None
        text, tokens = row.text.take(), tuple(row.tokens[self.sent :])
        if not text and not (tokens and row.ended):
            return
        final = slice(self.sent_logprobs, row.text.final_tokens)
        named = tuple(
            _named(token, logprobs, text_of)
            for token, logprobs in zip(row.tokens[final], row.logprobs[final], strict=False)
        )
        self.answer.put(Piece(text, tokens, named))
        self.sent, self.sent_logprobs = len(row.tokens), row.text.final_tokens


def _named(token: int, logprobs: TokenLogprobs, text_of: Callable[[int], str]) -> TokenLogprob:
    top = tuple((text_of(other), other, logprob) for other, logprob in logprobs.top)
    return TokenLogprob(text_of(token), token, logprobs.logprob, top)
