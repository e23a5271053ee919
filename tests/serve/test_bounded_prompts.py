"""What is made of a request's text takes a bounded time: its encoding, and its template."""

import threading
from collections.abc import Iterator

import pytest

from lorica.base.load import LoadedModel, load
from lorica.data.prompt_format import PromptFormat
from lorica.serve import served_templates
from lorica.serve.build import EngineSettings, engine_of
from lorica.serve.prompts import Prompts
from lorica.serve.refusals import InvalidRequest
from lorica.serve.served_templates import ServedTemplates
from tests.serve.live_server import eventually

LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
SLOW = (
    "{% if 'slow' in messages[0].content %}" + LOOPS + "{% endif %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
)
QUICK = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def bundled() -> LoadedModel:
    return load("bundled")


@pytest.fixture
def templates(monkeypatch: pytest.MonkeyPatch) -> Iterator[ServedTemplates]:
    monkeypatch.setattr(served_templates, "SECONDS", 0)  # up to 1 second, as 1 is up to 2
    own = ServedTemplates()
    yield own
    own.close()


def ask(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


@pytest.mark.slow  # the worker alone: tests/data/test_template_sandbox.py
def test_a_slow_template_is_stopped_and_keeps_no_other_waiting(
    bundled: LoadedModel, templates: ServedTemplates
):
    slow, quick = (
        Prompts(bundled, PromptFormat(kind="chat", template=source), templates=templates)
        for source in (SLOW, QUICK)
    )
    usual = slow.encode_chat(ask("hello"))
    with pytest.raises(InvalidRequest) as refusal:
        slow.encode_chat(ask("slow"))
    assert slow.form.digest[:12] in str(refusal.value) and "took too long" in str(refusal.value)
    assert slow.encode_chat(ask("hello")) == usual, "it goes on"

    def repeat() -> None:
        with pytest.raises(InvalidRequest):
            slow.encode_chat(ask("slow"))

    again = threading.Thread(target=repeat)
    again.start()
    assert eventually(templates._slow._lock.locked)
    assert quick.encode_chat(ask("hello"))
    assert templates._slow._lock.locked(), "the slow one is still at work"
    again.join()


def test_a_text_that_cannot_fit_is_refused_before_it_is_encoded(
    bundled: LoadedModel, monkeypatch: pytest.MonkeyPatch
):
    prompts = Prompts(bundled, None, most_characters=100)
    assert prompts.encode("a" * 100) and prompts.encode_chat(ask("a b"))
    monkeypatch.setattr(prompts._encoder, "ids", lambda *_, **__: pytest.fail("it is encoded"))
    monkeypatch.setattr(prompts, "_rendered", lambda *_: pytest.fail("it is rendered"))
    for call in (lambda: prompts.encode("a" * 101), lambda: prompts.encode_chat(ask("a" * 101))):
        with pytest.raises(InvalidRequest, match="characters"):
            call()


def test_what_fits_the_context_is_never_too_long(bundled: LoadedModel):
    engine = engine_of(load("bundled"), EngineSettings(max_length=64))
    engine.start()
    try:
        name = engine.base_name
        vocabulary = bundled.tokenizer.get_vocab()
        longest = bundled.tokenizer.decode([vocabulary[max(vocabulary, key=len)]])
        assert len(engine.encode(name, longest * 63)) <= 64
        with pytest.raises(InvalidRequest, match="characters"):
            engine.encode(name, "ab1!" * 2**18)
    finally:
        engine.close()
