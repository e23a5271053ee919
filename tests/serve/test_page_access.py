"""The page in a browser: for keyboards, phones, screen readers, dark rooms, and against attacks."""

import json

import pytest

from tests.serve.page_browser import (
    PHONE,
    choose,
    chromium,
    needs_chromium,
    opened,
    send,
    texts,
    wait_until,
    wait_until_ended,
    wait_until_written,
)
from tests.serve.page_server import NOTES, Refusal, Scene, card

pytestmark = [pytest.mark.slow, needs_chromium]
CONTRASTS = """() => {
  const parse = (color) => color.match(/[\\d.]+/g).map(Number);
  const linear = (value) => {
    const share = value / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  };
  const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const color = parse(getComputedStyle(at).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    throw new Error("no background");
  };
  const ratio = (a, b) => {
    const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y);
    return (high + 0.05) / (low + 0.05);
  };
  const rows = [];
  for (const node of document.querySelectorAll("body *")) {
    const isVisible = node.checkVisibility({ visibilityProperty: true, opacityProperty: true });
    const hasText = [...node.childNodes].some((c) => c.nodeType === 3 && c.data.trim());
    const isField = node.matches("input:not([type=radio]), textarea, select");
    if (!isVisible || !(hasText || isField)) continue;
    const style = getComputedStyle(node);
    const name = `${node.tagName}.${node.className}#${node.id}`;
    const isDisabled = node.matches(":disabled");
    rows.push([name, ratio(parse(style.color), behind(node)), isDisabled ? 3 : 4.5]);
    if (isField && node.type !== "checkbox") {
      rows.push([`${name} border`, ratio(parse(style.borderTopColor), behind(node)), 3]);
      const placeholder = getComputedStyle(node, "::placeholder").color;
      rows.push([`${name}::placeholder`, ratio(parse(placeholder), behind(node)), 4.5]);
    }
  }
  return rows;
}"""
HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "<script>alert(2)</script>",
    "__proto__",
    "constructor",
    "'\"]{}\\",
    "\u202eevil\u202c",
    "javascript:alert(3)",
    "x" * 300,
]


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


def scene(**fields) -> Scene:
    cards = [card("base", None), card("alice", notes=NOTES), card("bob", method="dora")]
    return Scene(cards, **fields)


def focused(view) -> str:
    return view.evaluate("document.activeElement.id")


def is_wider_than_the_screen(view) -> bool:
    """Whether anything scrolls sideways: the page, or a part that scrolls by itself."""
    return view.evaluate(
        """() => [...document.querySelectorAll("html, body, .turns, .choices, .rail, dialog")]
          .some((part) => part.clientWidth && part.scrollWidth > part.clientWidth)"""
    )


def test_keyboard_only(browser):
    quick = scene()
    with opened(browser, quick) as view:
        keys = view.keyboard
        keys.press("Tab")
        assert view.evaluate("document.activeElement.className") == "skip"
        keys.press("Enter")
        assert focused(view) == "prompt"
        keys.type("first /?")
        keys.press("Control+Enter")
        wait_until_ended(view)
        keys.press("Control+a")
        keys.type("second")
        keys.press("Control+Enter")
        wait_until_ended(view)
        keys.press("Control+a")
        keys.type("draft")
        keys.press("Home")
        keys.press("ArrowUp")
        assert view.input_value("#prompt") == "second"
        keys.press("ArrowUp")
        assert view.input_value("#prompt") == "first /?"
        keys.press("ArrowUp")
        assert view.input_value("#prompt") == "first /?"
        keys.press("ArrowDown")
        keys.press("ArrowDown")
        assert view.input_value("#prompt") == "draft"

        view.locator("#choices input").first.focus()
        keys.press("ArrowDown")
        assert view.evaluate("document.activeElement.dataset.id") == "alice"
        keys.press("Space")
        assert not view.locator("#choices input").nth(1).is_checked()
        keys.press("?")
        assert view.locator("#help").is_visible()
        keys.press("Escape")
        assert not view.locator("#help").is_visible()
        keys.press("/")
        assert focused(view) == "prompt" and view.input_value("#prompt") == "draft"

        view.locator("#open-history").focus()
        keys.press("Enter")
        keys.press("ArrowDown")
        keys.press("Enter")
        assert view.locator(".turn-prompt").inner_text().endswith("first /?")
        view.locator("#open-history").focus()
        keys.press("Enter")
        keys.press("Delete")
        assert view.locator(".entry").count() == 1
        assert view.evaluate("document.activeElement.className") == "entry"
        keys.press("Escape")
        assert focused(view) == "open-history"
    assert [body["prompt"] for _, body in quick.requests[::2]] == ["first /?", "second"]


def test_focus_is_never_lost(browser):
    refusal = Refusal(400, {"message": "no."})
    held = scene(hold_after=1, refusals={"alice": refusal})
    with opened(browser, held) as view:
        choose(view, "base", "alice")
        view.fill("#prompt", "Count.")
        view.locator("#send").focus()
        view.keyboard.press("Enter")
        wait_until_written(view, 1)
        assert focused(view) == "stop-button"
        view.keyboard.press("Enter")
        wait_until_ended(view)
        assert focused(view) == "send"
        held.release.set()
        view.get_by_role("button", name="Retry").focus()
        view.keyboard.press("Enter")
        wait_until_ended(view)
        assert view.evaluate("document.activeElement.className") == "answer"
        view.locator("#open-history").click()
        view.locator("#delete-history").focus()
        view.keyboard.press("Enter")
        assert view.evaluate("document.activeElement.textContent") == "Close"


def test_focus_is_visible_everywhere(browser):
    with opened(browser, scene()) as view:
        send(view, "Count.")
        wait_until_ended(view)
        view.locator("#settings summary").click()
        view.evaluate("document.activeElement.blur()")
        places = set()
        for _ in range(60):
            view.keyboard.press("Tab")
            place, is_visible = view.evaluate(
                """() => {
                  const node = document.activeElement;
                  const marked = node.type === "radio" ? node.nextElementSibling : node;
                  const style = getComputedStyle(marked);
                  const box = marked.getBoundingClientRect();
                  const name = `${node.tagName} ${node.id} ${node.ariaLabel}`;
                  return [name, style.outlineStyle !== "none" && box.width > 4 && box.top >= 0];
                }"""
            )
            assert is_visible or place.startswith("BODY"), place
            places.add(place)
        assert len(places) > 20


def test_the_live_region_speaks_of_ends_not_of_tokens(browser):
    long = scene(answers={"base": "word " * 40, "alice": "word " * 40}, hold_after=20)
    with opened(browser, long) as view:
        view.evaluate(
            """() => {
              globalThis.spoken = [];
              new MutationObserver(() => spoken.push(announcer.textContent))
                .observe(announcer, { childList: true, characterData: true, subtree: true });
            }"""
        )
        send(view, "Count.")
        wait_until_written(view, 2)
        assert view.locator(".answer").first.get_attribute("aria-busy") == "true"
        long.release.set()
        wait_until_ended(view)
        spoken = view.evaluate("spoken")
        assert view.locator(".answer").first.get_attribute("aria-busy") == "false"
        assert view.locator("[aria-live] .answer, [role=status] .answer").count() == 0
    assert spoken[0] == "2 models are answering."
    assert sorted(spoken[1:]) == [
        "The answer of alice is complete, 41 tokens.",
        "The answer of base is complete, 41 tokens.",
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(browser, scheme):
    refusals = {"bob": Refusal(429, {"message": "full. Fix: wait."}, {"Retry-After": "60"})}
    answers = {"base": "one two", "alice": "one three"}
    with opened(browser, scene(refusals=refusals, answers=answers), color_scheme=scheme) as view:
        rows = view.evaluate(CONTRASTS)
        choose(view, "base", "alice", "bob")
        view.locator("#settings summary").click()
        view.get_by_role("button", name="About alice").first.click()
        view.fill("#temperature", "9")
        rows += view.evaluate(CONTRASTS)
        view.fill("#temperature", "0")
        send(view, "Count.")
        wait_until_ended(view)
        view.get_by_role("button", name="Compare base").click()
        assert view.locator("mark").count() > 0
        rows += view.evaluate(CONTRASTS)
        for button in ("#open-help", "#open-history"):
            view.click(button)
            rows += view.evaluate(CONTRASTS)
            if button == "#open-history":
                view.click("#delete-history")  # shows a notice
                rows += view.evaluate(CONTRASTS)
            view.keyboard.press("Escape")
        background = view.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert ("253" in background) is (scheme == "light")
    assert len(rows) > 200
    assert [(name, round(ratio, 2)) for name, ratio, least in rows if ratio < least] == []


def test_appearance_is_kept(browser):
    with opened(browser, scene(), color_scheme="light") as view:
        view.locator("#settings summary").click()
        view.select_option("#theme", "dark")
        view.reload()
        style = "getComputedStyle(document.documentElement)"
        assert view.evaluate(f"{style}.colorScheme") == "dark"
        assert view.evaluate(f"{style}.backgroundColor") == "rgb(21, 21, 20)"
        assert view.locator("#theme").input_value() == "dark"


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_motion(browser, motion):
    held = scene(hold_after=1)
    with opened(browser, held, reduced_motion=motion) as view:
        send(view, "Count.")
        wait_until_written(view, 2)
        name = "getComputedStyle(document.querySelector('.answer-text'), '::after').animationName"
        assert view.evaluate(name) == ("none" if motion == "reduce" else "blink")


@pytest.mark.parametrize("width", [320, 360, 700])
def test_phones_have_no_horizontal_scroll(browser, width):
    answers = {"base": "x" * 500 + "\n" + "word " * 300, "alice": "y" * 90}
    cards = [card("base", None), card("alice", notes={"file": "z" * 200}), card("n" * 120)]
    with opened(
        browser,
        Scene(cards, answers),
        viewport={**PHONE, "width": width},
        is_mobile=True,
        has_touch=True,
    ) as view:
        assert not is_wider_than_the_screen(view)
        view.click("#open-rail")
        view.locator(".about-button").nth(1).click()
        view.locator("#settings summary").click()
        assert not is_wider_than_the_screen(view)
        for box in view.locator("#choices input").all():
            box.check()
        view.click("#open-rail")
        view.get_by_text("Conversation", exact=True).click()
        send(view, "p" * 200)
        wait_until_ended(view)
        assert not is_wider_than_the_screen(view)
        boxes = [answer.bounding_box() for answer in view.locator(".answer").all()]
        assert len(boxes) == 3 and all(box["x"] + box["width"] <= width for box in boxes)
        for button in ("#open-help", "#open-history"):
            view.click(button)
            assert not is_wider_than_the_screen(view)
            view.keyboard.press("Escape")
        send_button = view.locator("#send").bounding_box()
        assert send_button["x"] + send_button["width"] <= width
        assert send_button["y"] + send_button["height"] <= PHONE["height"]


def test_many_adapters_are_searched_and_limited(browser):
    cards = [card("base", None), *(card(f"customer-{i:02}") for i in range(60))]
    cards[8]["notes"] = {"trained_on": "Invoices"}
    with opened(browser, Scene(cards)) as view:
        view.fill("#search", "INVOICES lora")
        assert view.locator("#choices li:visible").count() == 1
        assert view.locator("#models-count").text_content() == "1 of 61"
        view.keyboard.press("ArrowDown")
        view.keyboard.press("Space")
        assert view.evaluate("document.activeElement.checked")
        view.fill("#search", "nothing like it")
        assert view.locator("#models-empty").is_visible()
        view.fill("#search", "")
        for index in range(20, 23):
            view.locator("#choices input").nth(index).check()
        assert view.locator("#choices input").nth(30).is_disabled()
        assert "Uncheck one" in view.locator("#models-limit").text_content()
        view.locator("#choices input").nth(22).focus()
        view.keyboard.press("ArrowUp")  # those that are disabled are passed over
        view.keyboard.press("Space")
        assert not view.locator("#choices input").nth(21).is_checked()
        assert view.locator("#choices input").nth(30).is_enabled()
        assert not view.locator("#models-limit").is_visible()
        view.locator("#choices input").nth(30).check()
        send(view, "Count.")
        wait_until_ended(view)
        assert len(texts(view)) == 6


def test_hostile_text_stays_text(browser):
    notes = {text: text for text in HOSTILE}
    cards = [card(HOSTILE[0], None, notes=notes)]
    cards += [card(name, method=name, notes=notes, state=name) for name in HOSTILE[1:]]
    attacked = Scene(cards, {name: f"{name}\n{HOSTILE[0]} **x**" for name in HOSTILE})
    attacked.refusals = {HOSTILE[1]: Refusal(400, {"message": HOSTILE[0], "code": HOSTILE[1]})}
    with opened(browser, attacked) as view:
        assert view.locator("#base-name").text_content() == HOSTILE[0]
        chosen = HOSTILE[:6]
        choose(view, *chosen)
        for button in view.locator(".about-button").all():
            button.click()
        send(view, HOSTILE[0])
        wait_until_ended(view)
        answers = texts(view)
        evil = "\\u{202e}evil\\u{202c}"
        assert list(answers) == [*chosen[:5], evil]
        for name in set(chosen) - {HOSTILE[1]}:
            assert answers[evil if "evil" in name else name] == attacked.answers[name]
        assert view.locator(".failure-what").text_content() == f"{HOSTILE[0]}."
        view.get_by_role("button", name="Compare", exact=False).nth(2).click()
        view.get_by_role("button", name="Compare", exact=False).nth(3).click()
        view.reload()
        assert texts(view) == answers
        view.click("#open-history")
        assert view.locator(".entry-prompt").text_content() == HOSTILE[0]
        assert view.locator("img, body script, iframe, object, svg").count() == 0
        assert not is_wider_than_the_screen(view)


def test_a_key_is_asked_for_and_kept_in_the_tab_only(browser):
    locked = scene(key="secret-key")
    with opened(browser, locked) as view:
        dialog = view.locator("#key-dialog")
        wait_until(view, "document.querySelector('#key-dialog').open")
        assert focused(view) == "key"
        view.keyboard.type("wrong key")
        view.keyboard.press("Enter")
        assert "no spaces" in view.locator("#key-problem").text_content()
        view.fill("#key", "wrong")
        view.keyboard.press("Enter")
        wait_until(view, "document.querySelector('#key-problem').textContent.includes('server')")
        view.fill("#key", "secret-key")
        view.keyboard.press("Enter")
        dialog.wait_for(state="hidden")
        assert focused(view) == "prompt"
        send(view, "Count.")
        wait_until_ended(view)
        assert texts(view)["alice"] == "This is alice."
        kept = view.evaluate("[JSON.stringify(localStorage), JSON.stringify(sessionStorage)]")
        assert "secret" not in kept[0] and "secret-key" in kept[1]
        assert "secret" not in json.dumps(locked.requests)
        view.reload()
        view.locator("#choices li").first.wait_for()
        view.click("#forget-key")
        wait_until(view, "document.querySelector('#key-dialog').open")
        assert "secret" not in view.evaluate("JSON.stringify(sessionStorage)")


def test_a_server_that_is_gone_or_empty_says_so(browser):
    with opened(browser, Scene([])) as view:
        assert view.locator(".start h2").text_content() == "No model is served to you."
    with opened(browser, scene()) as view:
        view.route("**/v1/**", lambda route: route.abort())
        send(view, "Count.")
        wait_until_ended(view)
        problem = view.locator(".failure-what").first.text_content()
        assert problem == "The server does not answer."
        view.get_by_role("button", name="Reload").click()
        notice = view.locator("#notice-text")
        notice.wait_for()
        assert notice.text_content().startswith("The server does not answer. Fix: check that")
        view.reload()
        view.get_by_role("button", name="History").click()
        assert view.locator(".entry").count() == 1
