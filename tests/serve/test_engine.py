"""The engine over the bundled base: many adapters at once, whatever happens around them."""

import asyncio
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import lorica
from lorica.base.bundled import FOLDER
from lorica.base.load import load
from lorica.core.state import adapter_state
from lorica.generation.sampling import Sampling
from lorica.serve import engine as engine_module
from lorica.serve.build import EngineSettings, engine_of
from lorica.serve.engine import ServingEngine
from lorica.serve.exchange import End, Job, Piece
from lorica.serve.quota import Quota
from lorica.serve.refusals import (
    InvalidRequest,
    ModelNotFound,
    Replaced,
    TooManyRequests,
    Unavailable,
)
from lorica.serve.residency import NoRoom
from lorica.serve.work import Work
from tests.serve.live_server import eventually

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
        with pytest.raises(TooManyRequests, match="2 answers of this key wait already"):
            for one in jobs:
                engine.submit(one)
        engine.submit(job(engine, tenant="other"))
    finally:
        engine.close()


def test_logprobs_belong_to_the_tokens(engine):
    async def pieces() -> list[Piece]:
        answer = engine.submit(job(engine, "lora", logprobs=2))
        return [event async for event in answer if isinstance(event, Piece)]

    events = asyncio.run(pieces())
    tokens = [token for piece in events for token in piece.tokens]
    logprobs = [own for piece in events for own in piece.logprobs]
    assert [own.token for own in logprobs] == tokens
    for own in logprobs:
        assert own.top[0][1:] == (own.token, own.logprob)  # greedy: the most probable one
        assert own.top[0][2] >= own.top[1][2]


def test_a_cancelled_answer_frees_its_slot_in_whatever_state(engine, monkeypatch):
    step, are_cancelled = engine._decoder.step, threading.Event()
    monkeypatch.setattr(engine._decoder, "step", lambda: (are_cancelled.wait(0.05), step())[1])

    async def run():
        answers = [engine.submit(job(engine, n=100)) for _ in range(8)]
        streams = [aiter(answer) for answer in answers]
        await anext(streams[0])
        for answer in answers:  # four have slots, four wait
            answer.cancel()
            answer.cancel()
        are_cancelled.set()
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


def failing(*arguments, **options):
    raise RuntimeError("out of memory at 0x7f")


def test_a_server_whose_model_fails_is_ready_again_once_it_works(monkeypatch):
    monkeypatch.setattr(engine_module, "PROBE_PAUSE", 0.01)
    engine = build({})
    try:
        expected = ask(engine, job(engine))
        with monkeypatch.context() as patched:
            patched.setattr(engine._decoder, "step", failing)
            (ended,) = ask(engine, job(engine))
            assert (ended[2].reason, "0x7f" in str(ended[2].error)) == ("error", False)
            assert eventually(lambda: not engine.is_ready)
            with pytest.raises(Unavailable, match="not ready"):
                engine.submit(job(engine))
        assert eventually(lambda: engine.is_ready)
        assert ask(engine, job(engine)) == expected
        assert len(engine._decoder.rows) == 0
    finally:
        engine.close()


def test_those_who_wait_while_the_model_fails_get_their_answers(monkeypatch):
    monkeypatch.setattr(engine_module, "PROBE_PAUSE", 0.01)
    engine = build({}, slots=1, reserved_slots=0)
    all_wait = threading.Event()
    monkeypatch.setattr(engine._decoder, "step", lambda: (all_wait.wait(), failing()))

    async def run():
        answers = [engine.submit(job(engine)) for _ in range(3)]
        all_wait.set()
        first = await collect(answers[0])
        monkeypatch.undo()
        return [first, *[await collect(answer) for answer in answers[1:]]]

    try:
        assert [end.reason for *_, end in asyncio.run(run())] == ["error", "length", "length"]
    finally:
        engine.close()


def test_a_job_that_fails_a_pass_fails_alone_while_the_server_stays_ready(engine, monkeypatch):
    """Each time, however often it is sent."""
    jobs = [job(engine), job(engine, "lora"), job(engine, prompt=PROMPTS[0])]
    expected = ask(engine, *jobs)
    acting = engine._decoder._acting
    bad = engine._models.reserve("dora")
    bad.release()

    def acting_unless_bad(keys):
        if bad.key in keys:
            raise RuntimeError("broken")
        return acting(keys)

    monkeypatch.setattr(engine._decoder, "_acting", acting_unless_bad)
    for _ in range(4):
        *good, ended = ask(engine, *jobs, job(engine, "dora"))
        assert good == expected
        assert (ended[2].reason, "broken" in str(ended[2].error)) == ("error", False)
        assert engine.is_ready


@pytest.mark.parametrize("place", ["admit", "send"])
def test_the_thread_survives_whatever_fails(place, monkeypatch):
    """Else every answer, and every load, would wait for ever."""
    engine = build({})
    try:
        expected = ask(engine, job(engine))
        with monkeypatch.context() as patched:
            patched.setattr(engine._decoder if place == "admit" else Work, place, failing)
            ((_, _, end),) = ask(engine, job(engine))
            assert (end.reason, engine.stats().running) == ("error", 0)
            assert "0x7f" not in str(end.error)
        assert ask(engine, job(engine)) == expected
    finally:
        engine.close()


@pytest.mark.parametrize("place", ["admit", "send"])
def test_one_job_that_fails_leaves_the_others_alone(engine, place, monkeypatch):
    expected = ask(engine, job(engine), job(engine, n=5))
    own = getattr(engine._decoder if place == "admit" else Work, place)

    def unless_poisoned(first, *arguments, **options):
        one = first[0] if place == "admit" else first.request
        return failing() if one.sampling.seed == 666 else own(first, *arguments, **options)

    monkeypatch.setattr(engine._decoder if place == "admit" else Work, place, unless_poisoned)
    first, poisoned, last = ask(engine, job(engine), job(engine, seed=666), job(engine, n=5))
    assert [first, last] == expected
    assert poisoned[2].reason == "error" and engine.is_ready


def test_logprobs_are_of_the_text_that_the_answer_has(engine):
    """Not of what a stop string cuts off, nor of the stop token."""

    def pieces(**options) -> list[Piece]:
        async def run():
            answer = engine.submit(job(engine, logprobs=0, n=40, **options))
            return [event async for event in answer if isinstance(event, Piece)]

        return asyncio.run(run())

    whole = "".join(piece.text for piece in pieces())
    for stop in (whole[5:8], whole[9:20], whole[-1]):
        events = pieces(stop=(stop,))
        text = "".join(piece.text for piece in events)
        assert text == whole[: whole.index(stop)]
        named = [p.text for piece in events for p in piece.logprobs]
        assert text.startswith("".join(named)), (text, named)
        so_far = ""
        for piece in events:  # none is given before its text
            so_far += piece.text
            assert len("".join(p.text for p in piece.logprobs)) <= len(so_far)


@pytest.mark.parametrize(
    ("seconds", "slowly", "reason"), [(60.0, 0.0, "length"), (0.05, 0.05, "shutdown")]
)
def test_draining_finishes_what_it_can_and_says_so_of_the_rest(seconds, slowly, reason):
    """slowly: seconds that each of 40 steps takes longer."""
    engine = build({}, slots=1)
    step = engine._decoder.step
    engine._decoder.step = lambda: (time.sleep(slowly), step())[1]

    async def run():
        answer = engine.submit(job(engine, n=40))
        drained = asyncio.create_task(asyncio.to_thread(engine.drain, seconds))
        return (await collect(answer))[2].reason, await drained

    try:
        assert asyncio.run(run()) == (reason, int(reason == "shutdown"))
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


def test_an_adapter_without_room_is_a_refusal_and_holds_up_no_others(folders):
    """Whatever fits is loaded while it waits. A stream keeps the memory full until time is up."""
    engine = build({"lora": folders["lora"]})
    size = engine.stats().resident_bytes
    engine.close()
    names = {name: folders[name] for name in ("ia3", "dora", "lora")}
    engine = build(names, memory_bytes=int(size * 1.2))
    engine._warming._clock = lambda: time.monotonic() + later
    later, step = 0.0, engine._decoder.step

    def step_while_it_waits():
        """Slowly, so that the stream outlasts the loads."""
        time.sleep(0.0 if later else 0.03)
        return step()

    async def run():
        nonlocal later
        held = engine.submit(job(engine, "lora", n=110, temperature=1.0))
        stream = aiter(held)
        await anext(stream)
        without_room = asyncio.create_task(collect(engine.submit(job(engine, "dora"))))
        small = await collect(engine.submit(job(engine, "ia3", tenant="other", n=4)))
        assert not without_room.done()
        later = engine._warming._patience
        return small[2], (await without_room)[2], [event async for event in stream][-1]

    engine._decoder.step = step_while_it_waits
    try:
        small, refused, _ = asyncio.run(run())
        assert small.reason != "error"
        assert isinstance(refused.refusal, NoRoom) and refused.refusal.retry_after
    finally:
        engine.close()


def test_the_jobs_of_a_request_are_accepted_all_or_none(folders):
    engine = build({}, quotas={"t": Quota(tokens_per_minute=100)})
    try:
        jobs = [job(engine, n=20) for _ in range(5)]
        with pytest.raises(InvalidRequest, match="this key may use 100 per minute"):
            engine.submit_all(jobs)
        with pytest.raises(Replaced):
            engine.submit_all([jobs[0], replace(jobs[1], generation=7)])
        with pytest.raises(InvalidRequest, match="vocabulary"):
            engine.submit_all([jobs[0], replace(jobs[1], prompt=(10**6,))])
        assert engine.stats().queued + engine.stats().running == 0
        assert len(engine.submit_all(jobs[:2])) == 2  # nothing was charged before
    finally:
        engine.close()
