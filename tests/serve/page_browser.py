"""The page in Debian's chromium, and what a test wants to know of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.serve.page_server import Scene, serving

CHROMIUM = Path("/usr/bin/chromium")
needs_chromium = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no {CHROMIUM}")
WIDE = {"width": 1280, "height": 800}
PHONE = {"width": 360, "height": 720}


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser. `--no-sandbox`: tests may run as root, and open their own server's page only."""
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Any, scene: Scene, **options: Any) -> Iterator[Any]:
    """The page of `scene`, as `watched`."""
    with serving(scene) as address, watched(browser, address, **options) as view:
        yield view


@contextmanager
def watched(browser: Any, address: str, **options: Any) -> Iterator[Any]:
    """The page at `address`, loaded. Fails at the end if the console reported anything (errors,
    violations of the policy; not the statuses that the server sends), or if a script asked a
    question, or if anything was loaded from elsewhere.
    """
    complaints: list[str] = []
    visited: list[str] = []

    def note(message: Any) -> None:
        is_status = "Failed to load resource" in message.text
        if message.type in ("error", "warning") and not is_status:
            complaints.append(message.text)

    context = browser.new_context(**{"viewport": WIDE, "reduced_motion": "reduce", **options})
    context.set_default_timeout(15_000)
    context.add_init_script(
        "addEventListener('securitypolicyviolation', (e) => console.error(e.violatedDirective))"
    )
    view = context.new_page()
    view.on("console", note)
    view.on("pageerror", lambda error: complaints.append(str(error)))
    view.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
    view.on("request", lambda request: visited.append(request.url))
    try:
        view.goto(address)
        view.locator("#choices li, .start h2").first.wait_for(state="attached")
        yield view
    finally:
        context.close()
    assert complaints == []
    assert {url for url in visited if not url.startswith((address, "blob:" + address))} == set()


def choose(view: Any, *names: str) -> None:
    """Check exactly these models."""
    wait_until_listed(view)
    for box in view.locator("#choices input").all():
        box.set_checked(box.get_attribute("data-id") in names)


def send(view: Any, prompt: str) -> None:
    wait_until_listed(view)
    view.fill("#prompt", prompt)
    view.keyboard.press("Control+Enter")


def wait_until_listed(view: Any) -> None:
    """Until the models are on the page, which a reload of it does not wait for."""
    view.locator("#choices li").first.wait_for(state="attached")


def wait_until_ended(view: Any) -> None:
    """Until no answer is being written."""
    wait_until(view, "document.querySelector('#stop-button').disabled")


def wait_until_written(view: Any, answers: int) -> None:
    """Until so many answers have text."""
    written = "[...document.querySelectorAll('.answer-text')].filter((e) => e.textContent)"
    wait_until(view, f"{written}.length === {answers}")


def wait_until(view: Any, expression: str) -> None:
    """Until `expression` holds. Playwright's own wait needs eval, which the policy forbids."""
    for _ in range(1000):
        if view.evaluate(expression):
            return
        view.wait_for_timeout(15)
    raise AssertionError(f"never: {expression}")


def texts(view: Any) -> dict[str, str]:
    """The text of each answer on the page by model; of later turns if there are several."""
    names = view.locator(".answer h3").all_text_contents()
    bodies = view.locator(".answer .answer-text").all_text_contents()
    return dict(zip(names, bodies, strict=True))


def figures(view: Any, model: str) -> dict[str, str]:
    """The figures of an answer, and the identity in its panel, by label."""
    rows = view.get_by_role("article", name=model, exact=True).locator(".figures, .identity")
    labels = rows.locator("dt").all_text_contents()
    return dict(zip(labels, rows.locator("dd").all_text_contents(), strict=True))
