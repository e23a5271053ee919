"""The report in a browser, opened from the disk: no complaint, sorting, copying, phone, print."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from lorica.compare.report import study_page
from lorica.compare.verdict import verdict_of
from tests.compare.example_study import example_study
from tests.serve.page_browser import PHONE, WIDE, chromium, needs_chromium

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("report") / "report.html"
    result = example_study()
    file.write_text(study_page(result, verdict_of(result)), encoding="utf-8")
    return file.as_uri()


@contextmanager
def opened(browser: Any, address: str, **options: Any) -> Iterator[Any]:
    """The report. Fails at the end if the console has a message, or anything else was loaded."""
    complaints, visited = [], []
    context = browser.new_context(**{"viewport": WIDE, **options})
    view = context.new_page()
    view.on("console", lambda message: complaints.append(message.text))
    view.on("pageerror", lambda error: complaints.append(str(error)))
    view.on("request", lambda request: visited.append(request.url))
    try:
        view.goto(address)
        yield view
    finally:
        context.close()
    assert complaints == [] and visited == [address]


def column(view: Any, number: int) -> list[str]:
    return view.locator(f"#sides tbody tr > :nth-child({number})").all_inner_texts()


def test_the_table_is_sorted_by_a_press_and_by_the_keyboard(browser, address):
    with opened(browser, address) as view:
        head = view.locator("#sides thead th")
        view.get_by_role("button", name="Time").click()
        times = [float(text) for text in column(view, 7)]
        assert times == sorted(times) and len(times) == 12
        assert head.nth(6).get_attribute("aria-sort") == "ascending"
        view.keyboard.press("Enter")
        assert [float(text) for text in column(view, 7)] == sorted(times, reverse=True)
        view.get_by_role("button", name="Difference").click()
        assert column(view, 1)[-1].strip() == "lora r=8"  # without a difference: last
        assert head.nth(6).get_attribute("aria-sort") is None
        view.get_by_role("button", name="Side").click()
        names = [text.strip() for text in column(view, 1)]
        assert names.index("lora r=4") + 1 == names.index("lora r=8")
        assert names.index("lora r=8") + 1 == names.index("lora r=16")


def test_a_recipe_is_copied_exactly(browser, address):
    side = example_study().sides[3]
    with opened(browser, address, permissions=["clipboard-read", "clipboard-write"]) as view:
        view.locator("#recipes summary").nth(3).click()
        view.get_by_role("button", name=f"Copy the recipe of {side.name}", exact=True).click()
        view.get_by_text("Copied").first.wait_for()
        assert view.evaluate("navigator.clipboard.readText()") == side.recipe


def test_on_a_phone_nothing_is_wider_than_the_screen(browser, address):
    with opened(browser, address, viewport=PHONE) as view:
        assert view.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
        sizes = view.evaluate(
            "[...document.querySelectorAll('svg.chart')].filter((e) => e.getClientRects().length)"
            ".map((e) => e.getBoundingClientRect().width / e.viewBox.baseVal.width)"
        )
        assert min(sizes) > 0.9  # so that text of 12 px is at least 11 px high


def test_in_print_nothing_is_cut_and_all_is_open(browser, address):
    paper = {"width": 703, "height": 1032}  # A4 less margins of 12 mm, in CSS pixels
    with opened(browser, address, viewport=paper) as view:
        view.emulate_media(media="print")
        assert view.evaluate("document.documentElement.scrollWidth") <= paper["width"]
        view.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert view.evaluate("document.querySelectorAll('details:not([open])').length") == 0
        view.evaluate("dispatchEvent(new Event('afterprint'))")
        assert view.evaluate("document.querySelectorAll('details[open]').length") == 0


def test_dark_follows_the_system_and_paper_is_light(browser, address):
    with opened(browser, address, color_scheme="dark") as view:
        color = "getComputedStyle(document.documentElement).backgroundColor"
        assert view.evaluate(color) == "rgb(21, 21, 20)"
        view.emulate_media(media="print")
        assert view.evaluate(color) == "rgb(253, 253, 251)"


def test_without_scripts_the_page_reads_the_same(browser, address):
    with opened(browser, address, java_script_enabled=False) as view:
        assert len(column(view, 1)) == 12
        assert view.locator("button:visible").count() == 0
