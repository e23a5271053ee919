"""The app, asked by the openai package and by plain HTTP over a real socket."""

import json
from collections.abc import Iterator

import httpx2
import openai
import pytest

from tests.serve.live_server import Live, running
from tests.serve.word_engine import WordEngine


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with running(WordEngine()) as server:
        yield server


@pytest.fixture
def client(live: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        yield client


MESSAGES = [{"role": "user", "content": "hello"}]


def test_models_are_listed_with_what_the_page_shows(client):
    models = {model.id: model for model in client.models.list()}
    assert set(models) == {"org/base", "alice", "hyper:ve-ol"}
    alice = models["alice"].model_dump()
    assert alice["parent"] == alice["root"] == "org/base"
    assert (alice["generation"], alice["method"], alice["state"]) == (3, "lora", "resident")
    assert {"notes", "digest", "chat", "conditions", "max_length"} <= set(alice)
    assert client.models.retrieve("org/base").id == "org/base"
    assert client.models.retrieve("hyper:ve-ol") == models["hyper:ve-ol"]


@pytest.mark.parametrize("model", ["org/base", "alice", "hyper:ve-ol"])
def test_a_conversation_streams_the_text_that_it_has_whole(client, model):
    settings = {"model": model, "messages": MESSAGES, "seed": 7, "max_completion_tokens": 30}
    whole = client.chat.completions.create(**settings)
    chunks = list(
        client.chat.completions.create(
            **settings, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content != ""
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage == whole.usage
    assert [c.usage for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert {c.system_fingerprint for c in chunks} == {whole.system_fingerprint}
    served = {"model": model, "alias": None, "digest": "", "generation": 0}
    if model != "org/base":
        served = chunks[0].model_extra["lorica"]
        assert served["alias"] == model.split(":")[0] and served["digest"].startswith("sha256:")
    assert whole.model_extra["lorica"] == served


def test_completions_have_choices_for_each_prompt_and_n(client):
    whole = client.completions.create(model="alice", prompt=["a", "bb"], n=2, seed=1, max_tokens=9)
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    assert whole.usage.prompt_tokens == 3
    chunks = list(
        client.completions.create(
            model="alice", prompt=["a", "bb"], n=2, seed=1, max_tokens=9, stream=True
        )
    )
    for choice in whole.choices:
        mine = [c.choices[0] for c in chunks if c.choices[0].index == choice.index]
        assert "".join(c.text for c in mine) == choice.text
        assert mine[-1].finish_reason == choice.finish_reason
    assert len({choice.text for choice in whole.choices[:2]}) == 2, "each choice has its own seed"
    alone = client.completions.create(model="alice", prompt="a", seed=2, max_tokens=9)
    assert alone.choices[0].text == whole.choices[1].text


def test_token_ids_are_a_prompt(client):
    ids = [ord(c) for c in "hello"]
    settings = {"model": "alice", "seed": 3}
    by_text = client.completions.create(prompt="hello", **settings)
    assert client.completions.create(prompt=ids, **settings).choices[0].text == (
        by_text.choices[0].text
    )
    assert len(client.completions.create(prompt=[ids, ids], **settings).choices) == 2


def test_log_probabilities(client):
    chat = client.chat.completions.create(
        model="alice", messages=MESSAGES, logprobs=True, top_logprobs=2, seed=1
    )
    tokens = chat.choices[0].logprobs.content
    assert "".join(token.token for token in tokens) == chat.choices[0].message.content
    assert bytes(tokens[0].bytes).decode() == tokens[0].token
    assert len(tokens[0].top_logprobs) == 2 and tokens[0].logprob == -0.5
    settings = {"model": "alice", "prompt": "x long", "logprobs": 2, "seed": 1}
    whole = client.completions.create(**settings).choices[0]
    assert "".join(whole.logprobs.tokens) == whole.text
    offsets = [sum(map(len, whole.logprobs.tokens[:i])) for i in range(len(whole.logprobs.tokens))]
    assert whole.logprobs.text_offset == offsets
    parts = [
        c.choices[0].logprobs
        for c in client.completions.create(**settings, stream=True)
        if c.choices[0].logprobs
    ]
    assert [t for p in parts for t in p.tokens] == whole.logprobs.tokens
    assert [o for p in parts for o in p.text_offset] == offsets
    none = client.completions.create(model="alice", prompt="x", logprobs=0)
    assert none.choices[0].logprobs.top_logprobs[0] == {}


def test_stop_strings_and_sampling_reach_the_engine(client, live):
    client.completions.create(
        model="alice", prompt="p", stop=["a", "b"], temperature=0.5, top_p=0.9, max_tokens=3
    )
    job = live.engine.jobs[-1]
    assert (job.stop, job.sampling.temperature, job.sampling.top_p) == (("a", "b"), 0.5, 0.9)
    assert (job.sampling.max_new_tokens, job.deadline, job.tenant) == (3, 60.0, "local")
    client.completions.create(model="alice", prompt="p", stop="a", temperature=0)
    job = live.engine.jobs[-1]
    assert (job.stop, job.sampling.temperature, job.sampling.max_new_tokens) == (("a",), 0, 16)
    client.chat.completions.create(model="alice", messages=MESSAGES)
    job = live.engine.jobs[-1]
    assert job.chat and job.sampling.max_new_tokens == 200 - len(job.prompt)


def test_content_may_have_parts(client, live):
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    client.chat.completions.create(model="alice", messages=[{"role": "user", "content": parts}])
    assert "".join(map(chr, live.engine.jobs[-1].prompt)) == "user: hello\n"


def test_headers_name_adapter_digest_and_generation(client):
    raw = client.chat.completions.with_raw_response.create(model="alice", messages=MESSAGES)
    assert raw.headers["x-lorica-adapter"] == "alice"
    assert raw.headers["x-lorica-digest"] == "sha256:" + "a" * 64
    assert raw.headers["x-lorica-generation"] == "3"
    assert raw.parse().system_fingerprint == "aaaaaaaaaaaaaaaa-g3"


def test_an_answer_that_fails_is_an_error_not_a_short_answer(client):
    settings = {"model": "alice", "prompt": "fail long", "max_tokens": 20}
    with pytest.raises(openai.InternalServerError, match="the fake failed"):
        client.completions.create(**settings)
    with pytest.raises(openai.APIError, match="the fake failed"):
        list(client.completions.create(**settings, stream=True))


def test_a_failing_stream_has_no_done(live):
    body = {"model": "alice", "prompt": "fail long", "stream": True}
    text = httpx2.post(f"{live.url}/v1/completions", json=body).text
    events = [line for line in text.split("\n\n") if line]
    assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "internal_error"
    assert "[DONE]" not in text


@pytest.mark.parametrize("stream", [False, True])
def test_a_bug_in_an_answer_tells_the_client_nothing(live, stream, caplog):
    body = {"model": "alice", "prompt": "raise long SECRET", "stream": stream}
    reply = httpx2.post(f"{live.url}/v1/completions", json=body)
    assert reply.status_code == (200 if stream else 500)
    assert "internal_error" in reply.text and "SECRET" not in reply.text
    assert "[DONE]" not in reply.text
    assert "RuntimeError" in caplog.text
    assert "SECRET" not in caplog.text


def test_errors_are_those_that_the_client_knows(client):
    with pytest.raises(openai.NotFoundError, match="may not use it") as error:
        client.completions.create(model="nobody", prompt="x")
    assert error.value.code == "model_not_found" and error.value.param == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.completions.create(model="alice", prompt="x", temperature=3)
    with pytest.raises(openai.BadRequestError, match="Fix: leave it out"):
        client.completions.create(model="alice", prompt="x", frequency_penalty=0.5)
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(model="alice", prompt="x" * 300)
    assert error.value.param == "prompt"
    with pytest.raises(openai.BadRequestError, match="Fix: set max_tokens to 199 or less") as error:
        client.completions.create(model="alice", prompt="x", max_tokens=200)
    assert error.value.param == "max_tokens"


def test_a_full_queue_says_when_to_come_back(live):
    live.engine.seconds_per_token = 0.05
    body = {"model": "alice", "prompt": "full long", "n": 3, "max_tokens": 50}
    try:
        reply = httpx2.post(f"{live.url}/v1/completions", json=body)
    finally:
        live.engine.seconds_per_token = 0.0
    assert reply.status_code == 429 and reply.headers["retry-after"] == "2"
    assert reply.json()["error"]["code"] == "rate_limit_exceeded"
    assert live.engine.open == [], "no choice is left running"
