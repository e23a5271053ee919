"""The page as `lorica serve` serves it, with its gate, headers and errors, over a fake engine."""

import pytest

from tests.serve.page_browser import (
    choose,
    chromium,
    figures,
    needs_chromium,
    send,
    texts,
    wait_until,
    wait_until_ended,
    wait_until_written,
    watched,
)

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
from tests.serve.live_server import create_gate, eventually, running
from tests.serve.word_engine import WordEngine

pytestmark = [pytest.mark.slow, needs_chromium]


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


def test_answers_are_those_of_the_engine(browser):
    engine = WordEngine()
    with running(engine) as live, watched(browser, f"{live.url}/") as view:
        names = [card.name for card in engine.cards()][:2]
        choose(view, *names)
        send(view, "long")
        wait_until_ended(view)
        assert list(texts(view)) == names
        assert all(len(text) > 200 for text in texts(view).values())
        assert figures(view, names[1])["Tokens"] == "4 → 100 tokens"  # half of the engine's context
        assert figures(view, names[1])["Finish"] == "length"
        card = engine.cards()[1]
        assert figures(view, card.name)["Digest"] == card.digest
        assert figures(view, card.name)["Generation"] == str(card.generation)
        view.reload()
        assert list(texts(view)) == names


def test_errors_of_the_engine(browser):
    with running(WordEngine()) as live, watched(browser, f"{live.url}/") as view:
        choose(view, "org/base")
        send(view, "fail")
        wait_until_ended(view)
        assert "The fake failed." in view.locator(".failure-what").text_content()
        view.locator("#settings summary").click()
        view.fill("#max_tokens", "5000")
        send(view, "long")
        wait_until_ended(view)
        assert "has 200 tokens" in view.locator("#composer-problem").text_content()
        view.fill("#max_tokens", "199")
        send(view, "long")
        wait_until_ended(view)
        view.get_by_role("button", name="Send with 196").click()
        wait_until_ended(view)
        assert figures(view, "org/base")["Tokens"] == "4 → 196 tokens"


def test_a_full_queue(browser):
    engine = WordEngine(seconds_per_token=0.01)
    with running(engine) as live, watched(browser, f"{live.url}/") as view:
        choose(view, "org/base", "alice", "hyper:ve-ol")
        send(view, "full long")
        wait_until(view, "document.querySelector('.failure button')")
        assert "The queue is full" in view.locator(".failure-what").text_content()
        assert view.locator(".failure button").text_content().startswith("Retry in")
        view.keyboard.press("Escape")
        wait_until_ended(view)


def test_stop_frees_the_slot(browser):
    engine = WordEngine(seconds_per_token=0.01)
    with running(engine) as live, watched(browser, f"{live.url}/") as view:
        choose(view, "org/base")
        send(view, "long")
        wait_until_written(view, 1)
        assert engine.running == 1
        view.keyboard.press("Escape")
        assert eventually(lambda: engine.running == 0)
        wait_until_ended(view)


def test_a_key_opens_the_models_of_its_tenant(browser):
    engine = WordEngine()
    gate = create_gate(engine, keys=True)
    with running(engine, gate) as live, watched(browser, f"{live.url}/") as view:
        wait_until(view, "document.querySelector('#key-dialog').open")
        view.keyboard.type("key-alice")
        view.keyboard.press("Enter")
        view.locator("#choices li").first.wait_for()
        assert view.locator("#choices .name").all_text_contents() == ["alice"]
