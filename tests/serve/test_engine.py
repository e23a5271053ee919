"""The engine over the bundled base: many adapters at once, whatever happens around them."""

import asyncio
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import lorica
from lorica.base.bundled import FOLDER
from lorica.base.load import load
from lorica.core.state import adapter_state
from lorica.generation.sampling import Sampling
from lorica.serve.build import EngineSettings, engine_of
from lorica.serve.engine import MOST_FAILURES, ServingEngine
from lorica.serve.exchange import End, Job, Piece
from lorica.serve.refusals import InvalidRequest, ModelNotFound, TooManyRequests, Unavailable

METHODS = {"lora": {"r": 4}, "dora": {"r": 4}, "ia3": {}, "prefix_tuning": {}}
PROMPTS = ("Ticket: my stove", "Once upon a time, a small", "vuno bvaso slelet vela mrima")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Adapters of several methods, none of which answers as the base does."""
    root = tmp_path_factory.mktemp("adapters")
    loaded = load(str(FOLDER))
    for number, (name, settings) in enumerate(METHODS.items()):
        lorica.adapt(loaded.model, lorica.method(name, **settings))
        torch.manual_seed(number)
        with torch.no_grad():
            for tensor in adapter_state(loaded.model).values():
                tensor.add_(torch.randn_like(tensor) * 0.3)
        lorica.save(loaded.model, root / name, base_path="bundled", tokenizer=loaded.tokenizer)
        lorica.detach(loaded.model)
    return {name: root / name for name in METHODS}


def build(folders, **settings) -> ServingEngine:
    settings = {"slots": 4, "max_length": 128, **settings}
    engine = engine_of(load("bundled"), EngineSettings(**settings))
    for name, folder in folders.items():
        engine.store.load(name, folder)
    engine.start()
    return engine


@pytest.fixture(scope="module")
def engine(folders):
    engine = build(folders)
    yield engine
    engine.close()


def job(engine, model="bundled", prompt=PROMPTS[1], *, n=12, **options) -> Job:
    sampling = Sampling(max_new_tokens=n, temperature=options.pop("temperature", 0.0))
    sampling = replace(sampling, seed=options.pop("seed", 0))
    options = {"tenant": "t", "sampling": sampling, **options}
    return Job(model=model, prompt=engine.encode(model, prompt), **options)


async def collect(answer) -> tuple[str, list[int], End]:
    pieces = []
    async for event in answer:
        if isinstance(event, End):
            tokens = [token for piece in pieces for token in piece.tokens]
            return "".join(piece.text for piece in pieces), tokens, event
        pieces.append(event)
    raise AssertionError("an answer without an end")


def ask(engine, *jobs):
    async def all_at_once():
        return await asyncio.gather(*(collect(engine.submit(one)) for one in jobs))

    return asyncio.run(all_at_once())


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_each_answer_of_a_mixed_batch_is_its_solo_answer(engine, temperature):
    jobs = [
        job(engine, model, prompt, n=4 + 5 * i, temperature=temperature, seed=i)
        for model in (*METHODS, "bundled")
        for i, prompt in enumerate(PROMPTS)
    ]
    together = ask(engine, *jobs)
    alone = [ask(engine, one)[0] for one in jobs]
    assert together == alone
    by_model = {one.model: answer[1] for one, answer in zip(jobs, alone, strict=True)}
    assert len({tuple(tokens) for tokens in by_model.values()}) == len(by_model)


def test_the_base_answers_as_it_does_without_adapters(engine):
    bare = build({})
    try:
        jobs = [job(bare, prompt=prompt) for prompt in PROMPTS]
        assert ask(bare, *jobs) == ask(engine, *jobs)
    finally:
        bare.close()


def test_the_queue_has_room_for_others_while_one_tenant_floods_it():
    engine = build({}, slots=1, max_queued=4)
    try:
        jobs = [job(engine, tenant="flood", n=100) for _ in range(16)]
        with pytest.raises(TooManyRequests, match="2 requests of this key wait already"):
            for one in jobs:
                engine.submit(one)
        engine.submit(job(engine, tenant="other"))
    finally:
        engine.close()


def test_logprobs_belong_to_the_tokens(engine):
    async def pieces() -> list[Piece]:
        answer = engine.submit(job(engine, "lora", logprobs=2))
        return [event async for event in answer if isinstance(event, Piece)]

    for piece in asyncio.run(pieces()):
        assert len(piece.logprobs) == len(piece.tokens)
        for token, own in zip(piece.tokens, piece.logprobs, strict=True):
            assert own.token == token
            assert own.top[0][1:] == (token, own.logprob)  # greedy: the most probable one
            assert own.top[0][2] >= own.top[1][2]


def test_a_cancelled_answer_frees_its_slot_in_whatever_state(engine):
    async def run():
        answers = [engine.submit(job(engine, n=100)) for _ in range(8)]
        streams = [aiter(answer) for answer in answers]
        await anext(streams[0])
        for answer in answers:  # four have slots, four wait
            answer.cancel()
            answer.cancel()
        ends = []
        for stream in streams:
            async for event in stream:
                if isinstance(event, End):
                    ends.append(event.reason)
        return ends

    assert asyncio.run(run()) == ["cancelled"] * 8
    stats = engine.stats()
    assert (stats.queued, stats.running) == (0, 0)
    assert ask(engine, job(engine))[0][2].reason == "length"


def test_deadlines_end_answers_with_what_they_have(engine):
    (_, _, end), (_, _, waiting) = ask(
        engine,
        job(engine, n=110, deadline=0.05),
        job(engine, n=110, deadline=0.0),
    )
    assert end.reason == "deadline"
    assert waiting == End("deadline", waiting.prompt_tokens, 0)


def test_a_replaced_adapter_finishes_its_streams(folders):
    engine = build({"a": folders["lora"]})

    async def run():
        expected = await collect(engine.submit(job(engine, "a", n=60)))
        running = engine.submit(job(engine, "a", n=60))
        stream = aiter(running)
        first = await anext(stream)
        new = await asyncio.to_thread(engine.store.load, "a", folders["dora"])
        after = engine.submit(job(engine, "a", n=60))
        rest = [event async for event in stream]
        text = "".join(event.text for event in (first, *rest) if isinstance(event, Piece))
        assert (running.served.generation, after.served.generation) == (1, 2)
        assert after.served.digest == new.digest != running.served.digest
        assert text == expected[0]
        assert (await collect(after))[0] != expected[0]

    try:
        asyncio.run(run())
        assert engine.store.draining() == []
    finally:
        engine.close()


def test_an_adapter_that_left_memory_comes_back_for_a_request(folders):
    engine = build({"lora": folders["lora"]})
    (expected,) = ask(engine, job(engine, "lora"))
    budget = engine.stats().resident_bytes
    engine.close()
    engine = build({"lora": folders["lora"], "dora": folders["dora"]}, memory_bytes=2 * budget - 1)
    try:
        assert engine.stats().evictions == 1
        for _ in range(2):
            assert ask(engine, job(engine, "lora")) == [expected]
            ask(engine, job(engine, "dora"))
        assert engine.stats().evictions >= 3
    finally:
        engine.close()


def test_a_folder_that_changed_is_an_error_of_the_answer(folders, tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    for file in folders["lora"].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    engine = build({"a": folder, "b": folders["dora"]}, memory_bytes=600_000)
    try:
        assert engine.stats().evictions == 1
        for file in folders["ia3"].iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        ((_, tokens, end),) = ask(engine, job(engine, "a"))
        assert (tokens, end.reason) == ([], "error")
        assert end.error
        assert engine.stats().queued == 0
    finally:
        engine.close()


def test_a_step_that_fails_ends_its_answers_and_no_others(folders, monkeypatch):
    engine = build({})
    step = engine._decoder.step

    def failing():
        raise RuntimeError("out of memory")

    try:
        for attempt in range(MOST_FAILURES):
            assert engine.is_ready
            monkeypatch.setattr(engine._decoder, "step", failing)
            ((_, _, end),) = ask(engine, job(engine))
            assert end.reason == "error"
            assert "out of memory" in str(end.error)
            if attempt == 0:
                monkeypatch.setattr(engine._decoder, "step", step)
                assert ask(engine, job(engine))[0][2].reason in ("length", "stop")
                monkeypatch.setattr(engine._decoder, "step", failing)
        ((_, _, end),) = ask(engine, job(engine))
        with pytest.raises(Unavailable):
            engine.submit(job(engine))
    finally:
        monkeypatch.undo()
        engine.close()


@pytest.mark.parametrize("place", ["admit", "_send"])
def test_the_thread_survives_whatever_fails(place, monkeypatch):
    """Else every answer, and every load, would wait for ever."""
    engine = build({})

    def failing(*arguments, **options):
        raise RuntimeError("broken")

    try:
        expected = ask(engine, job(engine))
        with monkeypatch.context() as patched:
            patched.setattr(engine._decoder if place == "admit" else engine, place, failing)
            ((_, _, end),) = ask(engine, job(engine))
            assert (end.reason, engine.stats().running) == ("error", 0)
            assert "broken" in str(end.error)
        assert ask(engine, job(engine)) == expected
    finally:
        engine.close()


def test_draining_finishes_what_it_can_and_says_so_of_the_rest(folders):
    engine = build({}, slots=1)

    async def run():
        short, long = engine.submit(job(engine, n=2)), engine.submit(job(engine, n=110))
        drained = asyncio.create_task(asyncio.to_thread(engine.drain, 0.2))
        ends = [(await collect(answer))[2].reason for answer in (short, long)]
        return ends, await drained

    try:
        ends, ended = asyncio.run(run())
        assert ends[0] in ("length", "stop")
        assert (ends[1] == "shutdown") == (ended == 1)
        with pytest.raises(Unavailable, match="shutting down"):
            engine.submit(job(engine))
    finally:
        engine.close()


def test_what_has_no_place_is_refused_before_it_waits(engine):
    with pytest.raises(ModelNotFound):
        engine.submit(replace(job(engine), model="nobody"))
    with pytest.raises(InvalidRequest, match="together they may have 128"):
        engine.submit(job(engine, n=127))
    with pytest.raises(InvalidRequest, match="vocabulary"):
        engine.submit(replace(job(engine), prompt=(10**6,)))
    with pytest.raises(InvalidRequest, match="empty"):
        engine.submit(replace(job(engine), prompt=()))
    assert engine.stats().queued == 0
    assert engine.store.draining() == []


def test_closing_ends_every_answer(folders):
    engine = build({}, slots=1)
    ends = []

    async def run():
        answers = [engine.submit(job(engine, n=100)) for _ in range(3)]
        threading.Thread(target=engine.close).start()
        ends.extend([(await collect(answer))[2].reason for answer in answers])

    asyncio.run(run())
    assert ends == ["shutdown"] * 3
