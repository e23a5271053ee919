"""The next token, from any logits and any settings that are allowed."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorica.errors import ConfigError
from lorica.generation.choice import NOT_FINITE, Chooser, draws
from lorica.generation.sampling import MAX_SEED, MAX_TEMPERATURE, MAX_TOP_K, Sampling

CPU = torch.device("cpu")
VOCABULARY = 40
TEMPERATURES = (5e-324, 1e-45, 1e-38, 1e-30, 1e-6, 0.3, 1.0, 1e3, 1e6)


def chooser(samplings: list[Sampling], numbers=None) -> Chooser:
    own = [draws(s.seed) if numbers is None else iter(numbers[i]) for i, s in enumerate(samplings)]
    return Chooser(samplings, own, [None] * len(samplings), CPU)


def reference(logits: torch.Tensor, sampling: Sampling, number: float) -> int:
    """The same draw in float64, in plain Python."""
    order = sorted(range(len(logits)), key=lambda i: -float(logits[i]))
    best = float(logits[order[0]])
    weights = [math.exp((float(logits[i]) - best) / sampling.temperature) for i in order]
    if sampling.top_k:
        weights = weights[: sampling.top_k]
    before, kept = 0.0, []
    for weight in weights:
        if kept and before >= sampling.top_p * sum(weights):
            break
        kept.append(weight)
        before += weight
    by_token = dict(zip(order, kept, strict=False))
    tokens = order if sampling.cuts_tail else sorted(by_token)
    upto = 0.0
    for token in tokens:
        upto += by_token.get(token, 0.0)
        if upto > number * sum(kept):
            return token
    raise AssertionError("a number of at least 1")


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("cut", [{}, {"top_k": 3}, {"top_p": 0.6}, {"top_k": 9, "top_p": 1e-300}])
def test_every_temperature_draws_as_in_float64(temperature, cut):
    sampling = Sampling(temperature=temperature, **cut)
    logits = torch.randn(20, VOCABULARY, generator=torch.Generator().manual_seed(0)) * 5
    numbers = [(i + 0.37) / 20 for i in range(20)]
    own = chooser([sampling] * 20, [[number] for number in numbers])
    rows = list(zip(logits, numbers, strict=True))
    assert own.tokens(logits) == [reference(row, sampling, number) for row, number in rows]
    if temperature < 1e-20:
        assert own_greedy(logits) == [reference(row, sampling, number) for row, number in rows]


def own_greedy(logits: torch.Tensor) -> list[int]:
    return logits.argmax(-1).tolist()


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_logits_of_any_size_give_tokens(temperature):
    """-inf is a token that the model excludes."""
    logits = torch.full((3, VOCABULARY), -torch.inf)
    logits[0, 7] = 3e38
    logits[1, 5], logits[1, 6] = -3e38, 3e38
    logits[2, 9] = -3e38
    samplings = [Sampling(temperature=temperature, top_k=k) for k in (0, 2, MAX_TOP_K)]
    assert chooser(samplings).tokens(logits) == [7, 6, 9]


allowed = st.builds(
    Sampling,
    temperature=st.floats(0, MAX_TEMPERATURE),
    top_p=st.floats(0, 1, exclude_min=True),
    top_k=st.integers(0, MAX_TOP_K),
    seed=st.integers(0, MAX_SEED),
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(allowed, min_size=1, max_size=4), st.integers(0, 3))
def test_no_allowed_setting_fails_a_choice(samplings, broken):
    logits = torch.randn(len(samplings), VOCABULARY)
    if broken < len(samplings):
        logits[broken, 3] = torch.nan
    tokens = chooser(samplings).tokens(logits)
    for i, token in enumerate(tokens):
        assert token == NOT_FINITE if i == broken else 0 <= token < VOCABULARY


@pytest.mark.parametrize(
    "setting",
    [
        *({"top_k": k} for k in (10**38, MAX_TOP_K + 1, -1)),
        *({"temperature": t} for t in (math.nan, math.inf, 1.1e6, -1e-9, 10**400)),
        *({"seed": s} for s in (-1, MAX_SEED + 1, 10**30)),
        *({"top_p": p} for p in (0.0, 1.1, math.nan)),
    ],
    ids=lambda setting: f"{setting!s:.30}",
)
def test_a_value_that_could_fail_is_refused(setting):
    with pytest.raises(ConfigError, match=f"{next(iter(setting))} is .*; it must be"):
        Sampling(**setting)
