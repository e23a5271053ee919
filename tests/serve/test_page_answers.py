"""The page in a browser: answers side by side, stopped, refused, compared, kept."""

import json

import pytest

from tests.serve.page_browser import (
    choose,
    chromium,
    figures,
    needs_chromium,
    opened,
    send,
    texts,
    wait_until_ended,
    wait_until_written,
)
from tests.serve.page_server import NOTES, Refusal, Scene, card

pytestmark = [pytest.mark.slow, needs_chromium]
READ_EVENTS = """async ([bytes, size]) => {
  const {readEvents} = await import("/page/sse.js");
  const body = new ReadableStream({
    start(controller) {
      for (let i = 0; i < bytes.length; i += size) {
        controller.enqueue(new Uint8Array(bytes.slice(i, i + size)));
      }
      controller.close();
    },
  });
  const all = [];
  for await (const data of readEvents(body)) all.push(data);
  return all;
}"""
COMPARE = """async (texts) => (await import("/page/diff.js")).compare(...texts)"""
ANSWERS = {"base": "one two three four", "alice": "one TWO three four five"}


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


def scene(**fields) -> Scene:
    cards = [
        card("base", None),
        card("alice", notes=NOTES, method="dora"),
        card("plain", chat=False),
        card("hyper", method="hyperlora", conditions=["ve-ol", "ol-ve"]),
    ]
    return Scene(cards, **{"answers": dict(ANSWERS), **fields})


def test_streams_side_by_side(browser):
    held = scene(hold_after=2)
    with opened(browser, held) as view:
        choose(view, "base", "alice")
        send(view, "Count.")
        wait_until_written(view, 2)
        assert texts(view) == {"base": "one two", "alice": "one TWO"}
        left, right = (answer.bounding_box() for answer in view.locator(".answer").all())
        assert left["y"] == right["y"] and left["x"] + left["width"] < right["x"]
        held.release.set()
        wait_until_ended(view)
        assert texts(view) == ANSWERS
        shown = figures(view, "alice")
        assert (shown["Tokens"], shown["Finish"], shown["Generation"]) == (
            "12 → 5 tokens",
            "stop",
            "1",
        )
        assert shown["Digest"] == held.cards[1]["digest"]
        assert shown["Speed"] == ""  # of five tokens it would say nothing
        assert shown["First token"].startswith("first after")
        assert figures(view, "base")["Digest"] == "none: the base itself"
    body = dict(held.requests)["/v1/completions"]
    assert body["prompt"] == "Count." and body["stream"] is True
    assert body["temperature"] == 0 and body["max_tokens"] == 256
    assert "seed" not in body and "top_p" not in body and "stop" not in body


def test_streaming_moves_nothing_above_the_text(browser):
    held = scene(hold_after=1)
    with opened(browser, held) as view:
        send(view, "Count.")
        places = "[...document.querySelectorAll('.answer-head, .figures, .composer, .answer-text')]"
        tops = f"{places}.map(e => e.getBoundingClientRect().top)"
        before = view.evaluate(tops)
        wait_until_written(view, 2)
        during = view.evaluate(tops)
        held.release.set()
        wait_until_ended(view)
        assert before == during == view.evaluate(tops)


def test_settings_are_sent_and_checked(browser):
    quick = scene()
    with opened(browser, quick) as view:
        choose(view, "alice")
        view.locator("#settings summary").click()
        view.fill("#temperature", "0.7")
        view.fill("#top_p", "0")
        view.fill("#seed", "5")
        view.fill("#stop", "END\n\\n\\n")
        send(view, "Count.")
        assert view.locator("#composer-problem").text_content().startswith("Set top_p to")
        assert view.locator("#top_p").get_attribute("aria-invalid") == "true"
        assert quick.requests == []
        view.fill("#top_p", "0.9")
        view.fill("#max_tokens", "")
        send(view, "Count.")
        wait_until_ended(view)
        view.reload()
        assert view.input_value("#temperature") == "0.7"
    [(_, body)] = quick.requests
    assert (body["temperature"], body["top_p"], body["seed"]) == (0.7, 0.9, 5)
    assert body["stop"] == ["END", "\n\n"] and "max_tokens" not in body


def test_escape_stops_and_the_server_notices(browser):
    held = scene(hold_after=2)
    with opened(browser, held) as view:
        choose(view, "base", "alice")
        send(view, "Count.")
        wait_until_written(view, 2)
        view.keyboard.press("Escape")
        wait_until_ended(view)
        assert texts(view) == {"base": "one two", "alice": "one TWO"}
        assert figures(view, "alice")["Finish"] == "by you"
        while len(held.aborted) < 2:
            view.wait_for_timeout(20)
    assert sorted(held.aborted) == ["alice", "base"]


def test_a_conversation_sends_what_each_model_answered(browser):
    quick = scene()
    with opened(browser, quick) as view:
        quick.refusals["base"] = Refusal(503, {"message": "starting."})
        choose(view, "base", "alice")
        view.get_by_text("Conversation", exact=True).click()
        view.fill("#system", "Be brief.")
        send(view, "Count.")
        wait_until_ended(view)
        quick.refusals.clear()
        choose(view, "base", "alice")
        send(view, "Again.")
        wait_until_ended(view)
        assert view.locator(".turn").count() == 2
        view.get_by_role("button", name="New", exact=True).click()
        assert view.locator(".turn").count() == 0
    assert {path for path, _ in quick.requests} == {"/v1/chat/completions"}
    sent = {
        body["model"]: [message["content"] for message in body["messages"]]
        for _, body in quick.requests[-2:]
    }
    assert sent == {
        "base": ["Be brief.", "Again."],  # it did not answer the first message
        "alice": ["Be brief.", "Count.", ANSWERS["alice"], "Again."],
    }


def test_conditions_are_entries(browser):
    quick = scene()
    with opened(browser, quick) as view:
        choose(view, "hyper:ol-ve")
        send(view, "Count.")
        wait_until_ended(view)
        assert figures(view, "hyper:ol-ve")["Finish"] == "stop"
    assert [body["model"] for _, body in quick.requests] == ["hyper:ol-ve"]


def test_about_shows_training_and_evaluation(browser):
    with opened(browser, scene()) as view:
        view.get_by_role("button", name="About alice").click()
        text = view.locator(".choices .about").inner_text()
        assert "dora" in text and NOTES["trained_on"] in text and NOTES["exact match"] in text


def test_differences_are_marked(browser):
    with opened(browser, scene()) as view:
        choose(view, "base", "alice")
        send(view, "Count.")
        wait_until_ended(view)
        view.get_by_role("button", name="Compare base").click()
        assert view.locator("mark").all_text_contents() == ["two", "TWO", "five"]
        assert "1 word of base and 2 words of alice" in view.locator(".compared").text_content()
        assert texts(view) == ANSWERS
        view.get_by_role("button", name="Compare alice").click()
        assert view.locator("mark").count() == 0


def test_comparing_texts(browser):
    cases = [["", ""], ["a b", ""], ["x a y", "x b y"], ["a " * 3000, "b " * 3000], ["é🙂", "é🙃"]]
    with opened(browser, scene()) as view:
        for texts_ in cases:
            result = view.evaluate(COMPARE, texts_)
            sides = [result["left"]["runs"], result["right"]["runs"]]
            assert ["".join(run for run, _ in side) for side in sides] == texts_
            same = ["".join(run for run, marked in side if not marked).split() for side in sides]
            assert same[0] == same[1]


def test_events_are_read_whatever_the_chunks(browser):
    stream = 'data: {"a":"é🙂"}\r\n\r\n: comment\ndata: one\r\ndata: two\r\n\n'
    stream += "event: x\ndata:3\r\rdata: cut"
    with opened(browser, scene()) as view:
        read = [
            view.evaluate(READ_EVENTS, [list(stream.encode()), size]) for size in (1, 2, 3, 7, 1000)
        ]
    assert read == [['{"a":"é🙂"}', "one\ntwo", "3"]] * 5


def test_errors_are_shown_with_their_fix(browser):
    message = "the model 'x' does not exist. Fix: GET /v1/models lists them."
    failing = scene(refusals={"alice": Refusal(404, {"message": message})}, broken={"base"})
    with opened(browser, failing) as view:
        choose(view, "base", "alice")
        send(view, "Count.")
        wait_until_ended(view)
        alice = view.get_by_role("article", name="alice")
        assert alice.locator(".failure-what").text_content() == "The model 'x' does not exist."
        assert alice.locator(".failure-fix").text_content() == "Fix: GET /v1/models lists them."
        base = view.get_by_role("article", name="base")
        assert base.locator(".failure-what").text_content() == "The server shuts down."
        assert texts(view)["base"] == ANSWERS["base"]
        failing.refusals.clear()
        failing.broken.clear()
        for answer in (alice, base):
            answer.get_by_role("button", name="Retry").click()
            wait_until_ended(view)
        assert texts(view) == ANSWERS
        assert not view.locator(".failure").first.is_visible()
        assert figures(view, "base")["Tokens"] == "12 → 4 tokens"


def test_a_full_queue_says_when_to_retry(browser):
    refusal = Refusal(429, {"message": "the queue is full."}, {"Retry-After": "2"})
    limited = scene(refusals={"alice": refusal})
    with opened(browser, limited) as view:
        choose(view, "alice")
        send(view, "Count.")
        button = view.get_by_role("button", name="Retry")
        assert button.text_content().startswith("Retry in") and button.is_disabled()
        limited.refusals.clear()
        view.get_by_role("button", name="Retry", exact=True).click()
        wait_until_ended(view)
        assert texts(view) == {"alice": ANSWERS["alice"]}


def test_a_stream_that_is_cut_is_no_answer(browser):
    with opened(browser, scene()) as view:
        choose(view, "alice")
        cut = 'data: {"choices": [{"text": "one"}]}\n\n'
        view.route(
            "**/v1/completions",
            lambda route: route.fulfill(content_type="text/event-stream", body=cut),
        )
        send(view, "Count.")
        wait_until_ended(view)
        assert figures(view, "alice")["Finish"] == "error"
        assert "before the answer was complete" in view.locator(".failure-what").text_content()


def test_history_survives_a_reload(browser):
    with opened(browser, scene()) as view:
        choose(view, "base", "alice")
        send(view, "Count.")
        wait_until_ended(view)
        view.reload()
        assert texts(view) == ANSWERS
        assert figures(view, "alice")["Tokens"] == "12 → 5 tokens"
        send(view, "Count again.")
        wait_until_ended(view)
        view.click("#open-history")
        prompts = view.locator(".entry-prompt")
        assert prompts.all_text_contents() == ["Count again.", "Count."]
        prompts.nth(1).click()
        assert view.locator(".turn-prompt").inner_text().endswith("Count.")

        view.click("#open-history")
        with view.expect_download() as download:
            view.click("#export-history")
        document = json.loads(download.value.path().read_text(encoding="utf-8"))
        assert [entry["turns"][0]["prompt"] for entry in document["entries"]] == [
            "Count again.",
            "Count.",
        ]
        view.click("#delete-history")
        assert view.locator(".entry").count() == 0
        view.get_by_role("button", name="Undo").click()
        assert view.locator(".entry").count() == 2
        view.get_by_role("button", name="Delete: Count again.").click()
        view.keyboard.press("Escape")
        view.reload()
        view.click("#open-history")
        assert prompts.all_text_contents() == ["Count."]


def test_an_answer_in_progress_survives_a_reload(browser):
    with opened(browser, scene(hold_after=2)) as view:
        choose(view, "alice")
        send(view, "Count.")
        wait_until_written(view, 1)
        view.reload()
        assert texts(view) == {"alice": "one TWO"}
        assert figures(view, "alice")["Finish"] == "interrupted"


@pytest.mark.parametrize(
    "value", ["{", "7", "null", '[{"id": 1}]', '[{"id": "a", "when": 1, "turns": [{}]}]']
)
def test_a_damaged_history_is_left_out(browser, value):
    with opened(browser, scene()) as view:
        view.evaluate("value => localStorage.setItem('lorica.history', value)", value)
        view.reload()
        choose(view, "alice")
        send(view, "Count.")
        wait_until_ended(view)
        view.click("#open-history")
        assert view.locator(".entry").count() == 1


def test_the_history_is_bounded(browser):
    with opened(browser, scene()) as view:
        sizes = view.evaluate(
            """async () => {
              const {put, entries} = await import("/page/history.js");
              const answers = [{model: "m", text: "x".repeat(30_000), state: "done"}];
              for (let i = 0; i < 220; i += 1) {
                put({id: `e${i}`, when: i, mode: "plain", turns: [{prompt: `p${i}`, answers}]});
              }
              const kept = entries();
              return [kept.length, kept[0].id, localStorage.getItem("lorica.history").length];
            }"""
        )
    assert 50 < sizes[0] < 70 and sizes[1] == "e219" and sizes[2] <= 2_000_000
