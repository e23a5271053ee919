"""The decoder: every row gets what it gets alone, whatever shares its passes and its slot."""

import gc
import random
import weakref
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorica.base.dynamic_rope import reset_before_each_call
from lorica.errors import ConfigError
from lorica.generation import forward as forward_passes
from lorica.generation.decoder import FAILED, Decoder
from lorica.generation.row import Request, Row
from lorica.generation.sampling import Sampling
from lorica.generation.slots import slot_support
from lorica.generation.stops import Stops
from tests.base.architectures import tiny, tokenizer

CARRIED = (
    *("llama", "qwen2", "qwen3", "gemma2", "gemma3", "mistral", "gpt2", "falcon", "bloom"),
    *("llama4_chunks", "deepseek_v3", "mpt"),
)
STATEFUL = ("mamba", "jamba", "lfm2", "rwkv", "qwen3_next")
STOPS = Stops(tokenizer())


def prompt(n: int, seed: int = 0) -> list[int]:
    draw = random.Random(f"{n} {seed}")
    return [draw.randrange(5, 290) for _ in range(n)]


def request(n: int, seed: int = 0, *, new: int = 12, **options) -> Request:
    fields = {k: options.pop(k) for k in ("temperature", "top_p", "top_k") if k in options}
    sampling = Sampling(max_new_tokens=new, seed=seed, **fields)
    return Request(prompt=prompt(n, seed), sampling=sampling, **{"stops": STOPS, **options})


def decode(model, requests, *, slots: int, chunk: int = 256) -> list[Row]:
    """Every request to its end, slots refilled as they become free."""
    decoder = Decoder(model, slots=slots, max_length=90, chunk=chunk)
    rows: list[Row] = []
    while len(rows) < len(requests) or decoder.rows:
        rows += decoder.admit(requests[len(rows) : len(rows) + decoder.free])
        decoder.step()
    return rows


@torch.no_grad()
def greedy_without_cache(model, ids: list[int], count: int) -> list[int]:
    row = list(ids)
    for _ in range(count):
        row.append(model(input_ids=torch.tensor([row])).logits[0, -1].argmax().item())
    return row[len(ids) :]


@pytest.mark.parametrize("name", CARRIED)
def test_greedy_rows_are_those_of_the_model_without_a_cache(name):
    """Windows are 8 tokens and chunks 16: prompts and answers cross both."""
    model = tiny(name)
    requests = [request(n, new=new) for n, new in ((3, 20), (19, 9), (40, 12), (1, 5), (18, 1))]
    rows = decode(model, requests, slots=3, chunk=16)
    for row, asked in zip(rows, requests, strict=True):
        new = asked.sampling.max_new_tokens
        assert row.tokens == greedy_without_cache(model, asked.prompt, new)
        assert row.ended == "length"


@pytest.mark.parametrize("name", STATEFUL)
def test_models_whose_state_is_no_slot_are_refused(name):
    with pytest.raises(ConfigError, match="one batch at a time"):
        Decoder(tiny(name), slots=2, max_length=90)


@pytest.mark.parametrize("name", ["phi3_longrope", "llama_dynamic"])
def test_rows_past_a_threshold_of_the_model_are_refused(name):
    model = tiny(name)
    reset_before_each_call(model)
    with pytest.raises(ConfigError, match="more than 24 tokens"):
        Decoder(model, slots=2, max_length=25)
    (row,) = decode_short(model)
    assert row.tokens == greedy_without_cache(model, prompt(9), 12)


def decode_short(model) -> list[Row]:
    decoder = Decoder(model, slots=2, max_length=24)
    rows = decoder.admit([request(9)])
    while decoder.rows:
        decoder.step()
    return rows


def test_the_trial_notices_a_window_that_is_left_out(monkeypatch):
    """Longer rows are then refused: the trial lowers the window and crosses it."""
    monkeypatch.setattr(forward_passes, "layer_windows", lambda config: [("", None)])
    assert slot_support(tiny("mistral")).batching.shared == 8


@pytest.mark.parametrize("chunk", [1, 7, 8, 9, 39, 40, 41])
def test_chunks_of_any_size_give_the_same_tokens(chunk):
    model = tiny("llama")
    requests = [request(n) for n in (40, 8, 1, 40)]
    want = [row.tokens for row in decode(model, requests, slots=1, chunk=1000)]
    assert [row.tokens for row in decode(model, requests, slots=3, chunk=chunk)] == want


def test_prefill_and_decoding_alternate():
    """A long prompt does not keep the rows that decode waiting for more than one pass."""
    decoder = Decoder(tiny("llama"), slots=2, max_length=90, chunk=8)
    (first,) = decoder.admit([request(4, new=30)])
    decoder.step()
    (second,) = decoder.admit([request(40)])
    counts = []
    while not second.is_prefilled:
        decoder.step()
        counts.append(len(first.tokens))
    assert counts == [2, 2, 3, 3, 4, 4, 5, 5, 6, 6][: len(counts)]
    assert len(counts) == 10


OPTIONS = st.fixed_dictionaries(
    {
        "n": st.sampled_from([1, 2, 9, 20, 40]),
        "seed": st.integers(0, 50),
        "new": st.integers(1, 25),
        "temperature": st.sampled_from([0.0, 1.0, 0.5]),
        "top_p": st.sampled_from([1.0, 0.8]),
        "top_k": st.sampled_from([0, 5]),
        "logprobs": st.sampled_from([None, 0, 3]),
    }
)
SCHEDULE = st.lists(
    st.one_of(
        st.lists(OPTIONS, min_size=1, max_size=3),
        st.just("step"),
        st.just("step"),
        st.tuples(st.just("cancel"), st.integers(0, 9)),
    ),
    max_size=40,
)


@pytest.mark.parametrize("name", ["llama", "gemma3", "bloom"])
@settings(max_examples=15, deadline=None, derandomize=True)
@given(schedule=SCHEDULE, chunk=st.sampled_from([5, 16, 256]))
def test_any_schedule_gives_every_row_its_solo_tokens(name, schedule, chunk):
    model = _model(name)
    decoder, rows = Decoder(model, slots=4, max_length=90, chunk=chunk), []
    for action in schedule:
        if action == "step":
            decoder.step()
        elif isinstance(action, list):
            new = [request(**dict(o)) for o in action][: decoder.free]
            rows += decoder.admit(new, ahead=len(rows) % 2 > 0)
        elif decoder.rows:
            decoder.cancel(decoder.rows[action[1] % len(decoder.rows)])
    while decoder.rows:
        decoder.step()
    for row in rows:
        (solo,) = decode(model, [row.request], slots=1, chunk=1000)
        cut = len(row.tokens) if row.ended == "cancelled" else None
        assert row.tokens == solo.tokens[:cut]
        assert row.ended in ("cancelled", solo.ended)
        got, want = ([lp.logprob for lp in r.logprobs] for r in (row, solo))
        assert got == pytest.approx(want[:cut], abs=1e-4)


_MODELS: dict[str, torch.nn.Module] = {}


def _model(name: str) -> torch.nn.Module:
    return _MODELS.setdefault(name, tiny(name))


def test_a_row_can_be_cancelled_in_every_state():
    model = tiny("llama")
    decoder = Decoder(model, slots=3, max_length=90, chunk=8)
    kept, decoding, reading = decoder.admit([request(3), request(4), request(30)])
    (want,) = decode(model, [request(3)], slots=1)
    decoder.cancel(reading)  # its prompt is not read at all
    (again,) = decoder.admit([request(30)])
    decoder.step()
    decoder.step()
    decoder.step()
    assert 0 < again.read < 30
    decoder.cancel(again)
    assert again.tokens == [] and decoder.free == 1
    decoder.cancel(decoding)
    assert decoding.ended == "cancelled" and decoding.tokens
    decoder.cancel(decoding)  # twice is once
    assert list(decoder.rows) == [kept]
    while decoder.rows:
        decoder.step()
    assert kept.tokens == want.tokens
    decoder.cancel(kept)
    assert kept.ended == "length"


def test_a_row_whose_logits_are_not_finite_fails_alone():
    """Neither the rows beside it, nor the next one in its slot, see its numbers."""
    model = tiny("llama")
    good = request(9)
    (want,) = decode(model, [good], slots=1)
    broken = Request(prompt=[299, *prompt(12)], sampling=good.sampling, stops=STOPS)
    model.get_input_embeddings().weight.data[299] = torch.nan
    decoder = Decoder(model, slots=2, max_length=90)
    bad, beside = decoder.admit([broken, good])
    decoder.step()
    assert (bad.ended, bad.tokens) == ("error", [])
    assert bad.error == "the model's logits are not finite after 13 tokens."
    (after,) = decoder.admit([request(9)])
    while decoder.rows:
        decoder.step()
    assert beside.tokens == after.tokens == want.tokens


def test_a_prompt_that_goes_ahead_is_read_before_those_that_wait():
    """Not before one that was read in part; and all of them get the tokens that they get alone."""
    model = tiny("llama")
    asked = [request(20, seed) for seed in range(3)] + [request(5, seed) for seed in (3, 4)]
    want = [row.tokens for row in decode(model, asked, slots=1)]
    decoder = Decoder(model, slots=5, max_length=90, chunk=8)
    rows = decoder.admit(asked[:3])
    decoder.step()
    rows += decoder.admit(asked[3:4], ahead=True) + decoder.admit(asked[4:], ahead=True)
    assert list(decoder.rows) == [rows[i] for i in (0, 3, 4, 1, 2)]
    firsts = []
    while decoder.rows:
        firsts += [row for row in decoder.step() if len(row.tokens) == 1]
    assert firsts == [rows[i] for i in (0, 3, 4, 1, 2)]
    assert [row.tokens for row in rows] == want


def test_a_row_that_decodes_gets_every_second_pass_whatever_goes_ahead():
    """A tenant that sends one-token requests without end does not stop the answers of others."""
    decoder = Decoder(tiny("llama"), slots=2, max_length=90)
    (row,) = decoder.admit([request(4, new=40)])
    decoder.step()
    for count in range(1, 30):
        decoder.admit([request(8, count, new=1)] * decoder.free, ahead=True)
        decoder.step()
        assert len(row.tokens) >= 1 + count // 2


def test_no_prompt_waits_for_ever_for_those_that_go_ahead():
    decoder = Decoder(tiny("llama"), slots=3, max_length=90, chunk=8)
    (partly,) = decoder.admit([request(80, new=1)])
    decoder.step()
    (waiting,) = decoder.admit([request(8, new=1)])
    overtaken = 0
    while not waiting.ended:
        decoder.admit([request(8, seed, new=1) for seed in range(decoder.free)], ahead=True)
        ended = decoder.step()
        overtaken += partly.ended is not None and waiting not in ended and partly not in ended
    assert overtaken <= decoder.slots


@pytest.mark.parametrize("chunk", [8, 256])
def test_no_row_sees_what_rows_that_failed_left_behind(chunk):
    """Several fail at once, in pieces of a prompt, or after they were moved to another slot."""
    model = tiny("llama")
    good = [request(n, new=2 + n % 7) for n in (3, 20, 9, 31, 5, 14)]
    want = [row.tokens for row in decode(model, good, slots=1)]
    model.get_input_embeddings().weight.data[299] = torch.nan
    draw = random.Random(0)
    decoder = Decoder(model, slots=4, max_length=90, chunk=chunk)
    rows: list[tuple[Row, int | None]] = []
    while len(rows) < 120 or decoder.rows:
        for _ in range(decoder.free if len(rows) < 120 else 0):
            number = draw.choice([None, None, *range(len(good))])
            broken = [299, *prompt(draw.randint(1, 60))]
            asked = Request(prompt=broken, sampling=good[0].sampling, stops=STOPS)
            asked = asked if number is None else good[number]
            (row,) = decoder.admit([asked], ahead=draw.random() < 0.5)
            rows.append((row, number))
        decoder.step()
        if decoder.rows and draw.random() < 0.1:
            decoder.cancel(draw.choice(decoder.rows))
    for row, number in rows:
        if row.ended == "cancelled":
            continue
        if number is None:
            assert (row.ended, row.tokens) == ("error", [])
        else:
            assert (row.error, row.tokens) == (None, want[number])


def test_a_row_with_a_stop_string_ends_with_it():
    model = tiny("llama")
    (free,) = decode(model, [request(5, new=30, has_text=True)], slots=1)
    free_text = free.text.take()
    stop = free_text[4:6]
    stops = Stops(tokenizer(), strings=(stop, "never"))
    stopped, other = decode(model, [request(5, new=30, stops=stops), request(5, new=30)], slots=2)
    assert stopped.ended == "stop" and other.tokens == free.tokens
    assert stopped.tokens == free.tokens[: len(stopped.tokens)] != free.tokens
    assert stopped.text.take() == free_text.split(stop)[0]
    assert stops.text(stopped.request.prompt, stopped.tokens) == free_text.split(stop)[0]


def test_adapters_are_named_for_the_rows_of_each_pass():
    passes = []

    @contextmanager
    def acting(adapters):
        passes.append(list(adapters))
        yield

    decoder = Decoder(tiny("llama"), slots=3, max_length=90, acting=acting)
    decoder.admit([request(4, new=n, adapter=a) for n, a in ((2, "a"), (4, None), (3, "b"))])
    while decoder.rows:
        decoder.step()
    assert passes == [["a", None, "b"], ["a", None, "b"], ["b", None], [None]]


def test_memory_is_allocated_as_rows_grow_and_freed_with_the_decoder():
    decoder = Decoder(tiny("llama"), slots=2, max_length=90)
    cache = decoder._forward.cache
    decoder.admit([request(4, new=3), request(4, new=3)])
    assert not cache.keys
    decoder.step()
    assert cache.keys[0].shape == (2, 2, 65, 8)
    while decoder.rows:
        decoder.step()
    decoder.admit([request(70, new=3)])
    decoder.step()
    assert cache.keys[0].shape == (2, 2, 91, 8)
    tensor = weakref.ref(cache.keys[0])
    del decoder, cache
    gc.collect()
    assert tensor() is None


def test_more_requests_than_slots_and_rows_that_do_not_fit_are_refused():
    decoder = Decoder(tiny("llama"), slots=1, max_length=20)
    with pytest.raises(ConfigError, match="2 requests were given for 1 free slots"):
        decoder.admit([request(3), request(3)])
    with pytest.raises(ConfigError, match="does not fit 20"):
        decoder.admit([request(9)])
    assert decoder.free == 1


@pytest.mark.parametrize("when", ["prefill", "decode", "long prompt"])
def test_a_row_that_fails_ends_alone(when):
    model, bad = tiny("llama"), set() if when == "decode" else {"bad"}

    @contextmanager
    def acting(adapters):
        if bad & set(adapters):
            raise RuntimeError("broken")
        yield

    long = 40 if when == "long prompt" else 7
    requests = [request(5), request(long, 1, adapter="bad"), request(9, 2, temperature=1.0)]
    expected = [row.tokens for row in decode(model, requests, slots=3)]
    decoder = Decoder(model, slots=3, max_length=90, acting=acting, chunk=32, isolates=True)
    rows = decoder.admit(requests)
    ended = []
    while decoder.rows:
        if all(row.is_prefilled for row in rows):
            bad.add("bad")
        ended += [row for row in decoder.step() if row.ended]
    assert set(ended) == set(rows)
    assert rows[1].ended == "error" and rows[1].error == FAILED
    assert [rows[0].tokens, rows[2].tokens] == [expected[0], expected[2]]


@pytest.mark.parametrize("isolates", [True, False])
def test_a_pass_that_fails_for_every_row(isolates):
    @contextmanager
    def acting(adapters):
        raise RuntimeError("out of memory")
        yield

    decoder = Decoder(tiny("llama"), slots=2, max_length=90, acting=acting, isolates=isolates)
    rows = decoder.admit([request(5), request(6, temperature=1.0, logprobs=1)])
    if isolates:
        assert decoder.step() == rows
        assert [row.ended for row in rows] == ["error"] * 2 and not decoder.rows
    else:
        with pytest.raises(RuntimeError, match="out of memory"):
            decoder.step()


def test_a_text_that_cannot_be_decoded_ends_its_row_alone(monkeypatch):
    decoder = Decoder(tiny("llama"), slots=2, max_length=90, isolates=True)
    rows = decoder.admit([request(5, has_text=True), request(5, has_text=True)])
    monkeypatch.setattr(rows[0].text, "push", None)
    while decoder.rows:
        decoder.step()
    assert [row.ended for row in rows] == ["error", "length"]
