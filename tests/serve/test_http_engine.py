"""The app over the real engine and the bundled base: what is streamed is what is answered whole."""

import json
import threading
from collections.abc import Iterator

import httpx2
import openai
import pytest

from lorica.serve.apps import client_gate
from lorica.serve.auth import Access
from lorica.serve.build import EngineSettings, open_engine
from lorica.serve.gate import LOCAL
from lorica.serve.metrics import Metrics
from tests.serve.live_server import eventually, running

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    engine = open_engine("bundled", EngineSettings(slots=4, max_length=96))
    engine.start()
    access, metrics = Access.local(engine.base_name), Metrics(engine)
    gate = client_gate(engine, metrics, access, hosts=LOCAL, any_address=False, deadline=60)
    with running(engine, gate) as live:  # type: ignore[arg-type]
        yield live.url
    engine.close()


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0) as client:
        yield client


SETTINGS = [
    {"temperature": 0, "max_tokens": 30},
    {"temperature": 1.5, "seed": 5, "max_tokens": 30},
    {"temperature": 1, "seed": 5, "max_tokens": 30, "top_p": 0.5, "extra_body": {"top_k": 3}},
    {"temperature": 1.2, "seed": 6, "max_tokens": 40, "stop": ["e", "the "]},
    {"temperature": 1.2, "seed": 7, "max_tokens": 20, "n": 3},
    {"temperature": 0, "max_tokens": 12, "logprobs": 3},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=range(len(SETTINGS)))
def test_a_stream_is_the_whole_answer(client, settings):
    settings = {"model": "bundled", "prompt": PROMPT, **settings}
    whole = client.completions.create(**settings)
    usage = {"include_usage": True}
    chunks = list(client.completions.create(**settings, stream=True, stream_options=usage))
    for choice in whole.choices:
        mine = [c for chunk in chunks for c in chunk.choices if c.index == choice.index]
        assert "".join(c.text for c in mine) == choice.text
        assert mine[-1].finish_reason == choice.finish_reason
        if "logprobs" in settings:
            parts = [c.logprobs for c in mine if c.logprobs]
            for name in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
                joined = [item for part in parts for item in getattr(part, name)]
                assert joined == getattr(choice.logprobs, name), name
            assert len(choice.logprobs.tokens) == whole.usage.completion_tokens
        for stop in settings.get("stop", ()):
            assert stop not in choice.text
    assert chunks[-1].usage == whole.usage


def test_answers_beside_one_another_are_those_alone(client):
    """Eight threads on four slots, the same eight answers as one after another."""
    settings = {"model": "bundled", "max_tokens": 16, "temperature": 1}

    def ask(number: int) -> str:
        choice = client.completions.create(
            prompt=PROMPT * (number % 3 + 1), seed=number, **settings
        )
        return choice.choices[0].text

    alone = [ask(number) for number in range(8)]
    together: dict[int, str] = {}
    threads = [
        threading.Thread(target=lambda number=number: together.update({number: ask(number)}))
        for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[number] for number in range(8)] == alone


def test_what_the_engine_refuses_has_the_field_that_is_wrong(client):
    cases = [
        ({"prompt": PROMPT, "max_tokens": 95}, "max_tokens"),
        ({"prompt": "word " * 200}, "prompt"),
        ({"prompt": [10**6]}, "prompt"),
        ({"prompt": ""}, "prompt"),
    ]
    for fields, param in cases:
        with pytest.raises(openai.BadRequestError) as error:
            client.completions.create(**{"model": "bundled", **fields})
        assert error.value.param == param, error.value.message
    with pytest.raises(openai.BadRequestError, match="template") as error:
        client.chat.completions.create(
            model="bundled",
            messages=[{"role": "user", "content": "hi"}],
            extra_body={"chat_template": "{{ messages }}"},
        )
    assert error.value.param == "chat_template"


def test_a_conversation_fills_the_room_that_is_left(client):
    messages = [{"role": "user", "content": "hi"}]
    answer = client.chat.completions.create(model="bundled", messages=messages, seed=3)
    assert answer.usage.total_tokens <= 96
    messages.insert(0, {"role": "system", "content": "Be brief."})
    with pytest.raises(openai.BadRequestError, match="not system"):
        client.chat.completions.create(model="bundled", messages=messages)


def test_a_client_that_goes_away_frees_its_slot(url):
    body = {
        "model": "bundled",
        "prompt": PROMPT,
        "max_tokens": 90,
        "stream": True,
        "temperature": 2,
    }
    for seed in range(3):
        data = json.dumps({**body, "seed": seed})
        headers = {"Content-Type": "application/json"}
        with httpx2.stream("POST", f"{url}/v1/completions", content=data, headers=headers) as reply:
            next(reply.iter_lines())
    metrics = f"{url}/metrics"
    assert eventually(lambda: "lorica_requests_running 0.0" in httpx2.get(metrics).text)
