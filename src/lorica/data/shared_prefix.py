"""The tokens with which two rows of a batch begin, which are computed once. No torch."""

from lorica.data.example import Example

MIN_SHARED_PREFIX = 8
"""Tokens. A shorter shared prefix costs more to gather than to compute again."""


def shared_prefix(previous: Example, example: Example) -> int:
    """How many tokens both begin with; 0 below MIN_SHARED_PREFIX.

    It is 0 under different conditions, where the adapters differ. The last token of `example` is
    never shared: a row keeps at least one token of its own.
    """
    if previous.condition != example.condition:
        return 0
    pairs = enumerate(zip(previous.ids, example.ids[:-1], strict=False))
    n = next((i for i, (a, b) in pairs if a != b), min(len(previous.ids), len(example.ids) - 1))
    return n if n >= MIN_SHARED_PREFIX else 0
