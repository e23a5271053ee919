"""The page in a browser where something is too long, too many, or left out."""

import pytest

from tests.serve.page_browser import (
    PHONE,
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
from tests.serve.page_server import Refusal, Scene, card

pytestmark = [pytest.mark.slow, needs_chromium]
LONG = "The order arrived without one of its parts. " * 200
TOUCH = {"viewport": PHONE, "is_mobile": True, "has_touch": True}


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


def scene(**fields) -> Scene:
    cards = [card("base", None), card("alice"), card("short", max_length=128)]
    return Scene([*cards, card("plain", chat=False), card("bob")], **fields)


def room(most: int) -> Refusal:
    message = f"the prompt has 900 tokens. Fix: set max_tokens to {most:,} or less."
    return Refusal(400, {"message": message})


def is_inside(view, inner: str, outer: str) -> bool:
    """Whether the first `inner` lies within the part of `outer` that is visible."""
    inside = view.locator(inner).first.bounding_box()
    around = view.locator(outer).bounding_box()
    ends = [box["y"] + box["height"] for box in (inside, around)]
    return around["y"] <= inside["y"] and ends[0] <= ends[1]


@pytest.mark.parametrize("options", [{}, TOUCH])
def test_a_long_prompt_leaves_room_for_its_error(browser, options):
    refused = scene(refusals={"base": Refusal(400, {"message": "no."})})
    with opened(browser, refused, **options) as view:
        choose_unseen(view, "base", "alice")
        send(view, LONG)
        wait_until_ended(view)
        assert is_inside(view, ".failure button", ".turns")
        assert texts(view)["alice"] == "This is alice."
        assert view.locator("#prompt").bounding_box()["height"] <= 70
        button = view.get_by_role("button", name="Show all")
        low = view.locator(".turn-prompt").bounding_box()["height"]
        button.click()
        assert view.locator(".turn-prompt").bounding_box()["height"] > 5 * low
        view.get_by_role("button", name="Show less").click()
        assert view.locator(".turn-prompt").bounding_box()["height"] == low
        send(view, "Short.")
        wait_until_ended(view)
        assert not button.is_visible()


def choose_unseen(view, *names: str) -> None:
    """Choose, where the models may lie behind a button."""
    is_narrow = view.locator("#open-rail").is_visible()
    if is_narrow:
        view.click("#open-rail")
    choose(view, *names)
    if is_narrow:
        view.get_by_role("button", name="Done").click()
        assert not view.locator("#rail").is_visible()


def test_sending_shows_the_new_answers_and_streaming_does_not_scroll(browser):
    held = scene(answers={"base": "word\n" * 200, "alice": "word\n" * 200}, hold_after=1)
    with opened(browser, held) as view:
        choose(view, "base", "alice")
        send(view, LONG)
        wait_until_written(view, 2)
        assert is_inside(view, ".answer-head", ".turns")
        top = view.evaluate("document.querySelector('.turns').scrollTop")
        held.release.set()
        wait_until_ended(view)
        assert view.evaluate("document.querySelector('.turns').scrollTop") == top


def test_max_tokens_fit_the_shortest_context(browser):
    quick = scene()
    with opened(browser, quick) as view:
        choose(view, "base", "short")
        view.locator("#settings summary").click()
        assert view.input_value("#max_tokens") == "64"
        choose(view, "base", "alice")
        assert view.input_value("#max_tokens") == "256"
        choose(view, "base", "short")
        view.fill("#max_tokens", "128")
        send(view, "Count.")
        assert "from 1 to 127" in view.locator("#composer-problem").text_content()
        assert quick.requests == []
        choose(view, "base", "alice")
        send(view, "Count.")
        wait_until_ended(view)
    assert [body["max_tokens"] for _, body in quick.requests] == [128, 128]


def test_a_refusal_offers_the_maximum_that_fits(browser):
    tight = scene(refusals={"base": room(1148), "alice": room(1148), "bob": room(90)})
    with opened(browser, tight) as view:
        choose(view, "base", "alice", "bob")
        send(view, LONG)
        wait_until_ended(view)
        whats = view.locator(".failure-what").all_text_contents()
        assert whats == ["The prompt has 900 tokens."] * 2
        alice = view.get_by_role("article", name="alice").locator(".failure")
        assert alice.text_content() == "The same message as for base."
        tight.refusals.clear()
        tight.requests.clear()
        view.get_by_role("button", name="Send with 1,148").click()
        wait_until_ended(view)
        assert list(texts(view).values()) == [f"This is {name}." for name in texts(view)]
    # One button for all three: the least that was offered fits each of them.
    assert [body["max_tokens"] for _, body in tight.requests] == [90] * 3


def test_plain_models_are_left_out_of_a_conversation(browser):
    quick = scene()
    with opened(browser, quick) as view:
        assert "plain prompts only" in view.locator("#choices li").nth(3).text_content()
        choose(view, "base", "plain")
        assert not view.locator("#left-out").is_visible()
        view.get_by_text("Conversation", exact=True).click()
        warning = "Left out of the conversation: plain (plain prompts only)."
        assert view.locator("#left-out").text_content() == warning
        send(view, "Count.")
        wait_until_ended(view)
        assert list(texts(view)) == ["base"]
        choose(view, "plain")
        send(view, "Count.")
        assert "Choose Plain" in view.locator("#composer-problem").text_content()
        view.locator("[name=mode]").first.check()
        send(view, "Count.")
        wait_until_ended(view)
        assert list(texts(view)) == ["plain"]
    assert [body["model"] for _, body in quick.requests] == ["base", "plain"]


def test_two_answers_fit_on_a_phone(browser):
    answers = {"base": "word " * 12, "alice": "word " * 12}
    with opened(browser, scene(answers=answers), **TOUCH) as view:
        assert "Ctrl" not in view.locator(".start").inner_text()
        assert "side by side" not in view.locator(".start").inner_text()
        choose_unseen(view, "base", "alice")
        view.fill("#prompt", LONG)
        view.click("#send")
        wait_until_ended(view)
        end = view.locator(".answer-text").nth(1).bounding_box()
        assert end["y"] + end["height"] <= view.locator("#composer").bounding_box()["y"]
        assert view.evaluate("document.activeElement.id") != "prompt"


def test_four_answers_are_two_by_two(browser):
    with opened(browser, scene()) as view:
        choose(view, "base", "alice", "plain", "bob")
        send(view, "Count.")
        wait_until_ended(view)
        boxes = [answer.bounding_box() for answer in view.locator(".answer").all()]
        assert len({box["x"] for box in boxes}) == len({box["y"] for box in boxes}) == 2


@pytest.mark.parametrize(("text", "is_hidden"), [(" one two", True), ("   return x", False)])
def test_one_leading_space_takes_no_room_and_is_kept(browser, text, is_hidden):
    with opened(browser, scene(answers={"base": text})) as view:
        choose(view, "base")
        send(view, "Count.")
        wait_until_ended(view)
        assert texts(view) == {"base": text}
        assert view.locator(".lead").count() == is_hidden


def test_figures_are_one_line(browser):
    answers = {"base": "word " * 40, "alice": "one two"}
    with opened(browser, scene(answers=answers, delay=0.005)) as view:
        choose(view, "base", "alice")
        send(view, "Count.")
        wait_until_ended(view)
        assert figures(view, "base")["Speed"].endswith("tokens/s")
        assert figures(view, "alice")["Speed"] == ""
        height = view.locator(".figures").first.bounding_box()["height"]
        assert height < 20
        view.get_by_role("button", name="About alice").last.click()
        panel = view.locator(".answer-about").nth(1)
        assert "Generation" in panel.inner_text() and "sha256:" in panel.inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_errors_do_not_look_like_focus(browser, scheme):
    with opened(browser, scene(), color_scheme=scheme) as view:
        view.locator("#settings summary").click()
        view.fill("#top_p", "7")
        view.locator("#temperature").focus()
        color = "(id) => getComputedStyle(document.getElementById(id)).borderTopColor"
        colors = [view.evaluate(color, name) for name in ("temperature", "top_p")]
        (red, _, blue), (error_red, _, error_blue) = (
            [int(part) for part in text[4:-1].split(",")] for text in colors
        )
        assert blue > red + 60 and error_red > error_blue + 60
        content = "getComputedStyle(document.getElementById('settings-problem'), '::before')"
        assert view.evaluate(f"{content}.content").startswith('"!"')
