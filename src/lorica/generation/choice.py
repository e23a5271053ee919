"""The next token of each row, from the logits of a pass.

A row's draws come from a generator of its own, on the CPU, one number per token: its text does not
depend on the other rows, nor on the device's generator.

    M rows   V vocabulary
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lorica.generation.sampling import MAX_TOP_K, Sampling

NOT_FINITE = -1
"""In place of the token of a row whose logits are not finite."""
AT_A_TIME = 64
LOWEST_TEMPERATURE = torch.finfo(torch.float32).tiny
"""Below it float32 would round to 0. At it only the most probable tokens are drawn."""


@dataclass(frozen=True)
class TokenLogprobs:
    """Log-probabilities in nats under the model's own distribution, before temperature.

    top: (token, logprob) of the most probable ones, best first.
    """

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def draws(seed: int) -> Iterator[float]:
    """Numbers in [0, 1) that follow from the seed alone."""
    return _numbers(torch.Generator().manual_seed(seed))


def _numbers(generator: torch.Generator) -> Iterator[float]:
    while True:
        yield from torch.rand(AT_A_TIME, generator=generator, dtype=torch.float64).tolist()


class Chooser:
    """Chooses the tokens of the same rows, pass after pass.

    samplings, logprobs: of each row; see `decoder.Request`. draws: of each row.
    """

    def __init__(
        self,
        samplings: Sequence[Sampling],
        draws: Sequence[Iterator[float]],
        logprobs: Sequence[int | None],
        device: torch.device,
    ):
        self._device = device
        self._logprobs = {i: n for i, n in enumerate(logprobs) if n is not None}
        sampled = [i for i, s in enumerate(samplings) if s.temperature > 0]
        groups = (  # a row is chosen in the same way whatever the other rows ask for
            [i for i in sampled if not samplings[i].cuts_tail],
            [i for i in sampled if samplings[i].cuts_tail],
        )
        self._groups = [
            _Group(rows, [samplings[i] for i in rows], [draws[i] for i in rows], device)
            for rows in groups
            if rows
        ]

    def tokens(self, logits: Tensor) -> list[int]:
        """The token of each row of logits (M, V); NOT_FINITE where they are not finite."""
        highest, tokens = logits.max(-1)  # NaN if any is; -inf is allowed beside others
        finite = highest.isfinite()
        for group in self._groups:
            of_rows = torch.where(finite[group.index, None], logits[group.index].float(), 0.0)
            tokens[group.index] = group.sampled(of_rows)
        return torch.where(finite, tokens, NOT_FINITE).tolist()

    def logprobs(self, logits: Tensor, tokens: Sequence[int]) -> dict[int, TokenLogprobs]:
        """By row, for the rows that ask for them and have a token."""
        rows = [i for i in self._logprobs if tokens[i] != NOT_FINITE]
        if not rows:
            return {}
        index = torch.tensor(rows, device=self._device)
        nats = logits[index].float().log_softmax(-1)
        chosen = torch.tensor([tokens[i] for i in rows], device=self._device)
        own = nats.gather(1, chosen.unsqueeze(1)).squeeze(1).tolist()
        most = min(max(self._logprobs[i] for i in rows), nats.shape[1])
        values, ids = (t.tolist() for t in nats.topk(most, dim=1))
        return {
            row: TokenLogprobs(
                own[k],
                tuple(zip(ids[k], values[k], strict=True))[: self._logprobs[row]],
            )
            for k, row in enumerate(rows)
        }


class _Group:
    """Rows that are sampled together; all of them cut the tail of the distribution, or none.

    index: (G,) their numbers.
    """

    def __init__(
        self,
        rows: Sequence[int],
        samplings: Sequence[Sampling],
        draws: Sequence[Iterator[float]],
        device: torch.device,
    ):
        def column(values: Sequence[float], dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device).unsqueeze(1)

        self._draws, self._cuts_tail = draws, samplings[0].cuts_tail
        self.index = torch.tensor(rows, device=device)
        self._temperature = column([max(s.temperature, LOWEST_TEMPERATURE) for s in samplings])
        self._top_k = column([s.top_k or MAX_TOP_K for s in samplings], torch.long)
        self._top_p = column([s.top_p for s in samplings])

    def sampled(self, logits: Tensor) -> Tensor:
        """The tokens (G,) drawn from logits (G, V) float32."""
        # At most 0 before the division: a small temperature gives -inf, and never inf or NaN.
        below = logits - logits.amax(-1, keepdim=True)
        if not self._cuts_tail:
            return self._drawn((below / self._temperature).softmax(-1))
        below, tokens = below.sort(dim=-1, descending=True, stable=True)
        scaled = below / self._temperature
        rank = torch.arange(scaled.shape[1], device=scaled.device)
        probabilities = scaled.masked_fill(rank >= self._top_k, -torch.inf).softmax(-1)
        before = probabilities.cumsum(-1) - probabilities
        kept = probabilities.masked_fill((before >= self._top_p) & (rank > 0), 0.0)
        return tokens.gather(1, self._drawn(kept).unsqueeze(1)).squeeze(1)

    def _drawn(self, weights: Tensor) -> Tensor:
        """(G,) numbers of columns, each with the probability of its weight; weights: (G, V)."""
        upto = weights.double().cumsum(-1)
        numbers = torch.tensor([[next(own)] for own in self._draws], dtype=torch.float64)
        places = torch.searchsorted(upto, numbers.to(upto.device) * upto[:, -1:], right=True)
        return places.squeeze(1).clamp_max(weights.shape[1] - 1)
