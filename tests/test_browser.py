"""The committed pages in a browser: nothing is loaded, nothing is cut off, and axe-core finds no fault.

Debian's chromium, or what CHROMIUM names; without one these tests are skipped, and say so.
"""

import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from stages.core import files
from stages.pages import addresses

ROOT = Path(__file__).parent.parent
BROWSER = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
PAGES = ["index", "labels"]
A4_PX = 718  # between margins of 10 mm, at 96 px an inch
MAX_BYTES = 15_000_000
REACH = """() => [...document.querySelectorAll('table, svg, img, svg text')].filter(
  (shown) => shown.getBoundingClientRect().width > 0 && shown.getBoundingClientRect().right > innerWidth + 1
    && !(%s && shown.closest('.scroll'))).map((shown) => shown.outerHTML.slice(0, 80))"""

pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no browser: install chromium (apt install chromium), or name one by CHROMIUM=<path>"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium, without a window."""
    with sync_playwright() as driver:
        yield driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])


def opened(browser: Browser, name: str, width: int, scheme: str) -> tuple[Page, list[str]]:
    """A page of reports/ from disk, and what it said on the console and asked for."""
    page, said = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url) if not request.url.startswith("data:") else None)
    page.goto((ROOT / f"reports/{name}.html").as_uri())
    return page, said


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (768, "dark"), (390, "light")])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_asks_for_nothing_fits_and_has_no_fault(browser: Browser, name: str, width: int, scheme: str) -> None:
    page, said = opened(browser, name, width, scheme)
    assert said == [page.url]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(REACH % "true") == [], "wider than the page, and in no region that scrolls"
    found = Axe().run(page, options={"resultTypes": ["violations", "passes"]}).response
    assert len(found["passes"]) > 20, "axe-core did look"
    assert [
        (fault["id"], fault["nodes"][0]["html"])
        for fault in found["violations"]
        if fault["impact"] in ("serious", "critical")
    ] == []
    page.close()


@pytest.mark.parametrize("name", PAGES)
def test_a_region_that_scrolls_has_a_name_and_is_reached_by_keyboard(browser: Browser, name: str) -> None:
    page, _ = opened(browser, name, 390, "light")
    wide = page.locator(".scroll")
    names = [wide.nth(place).get_attribute("aria-label") for place in range(wide.count())]
    assert names
    assert all(names)
    assert len(set(names)) == len(names), "two regions of one name"
    reached = set[str]()
    for _ in range(page.locator("a, summary, .scroll, button, input, select").count()):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.getAttribute('aria-label') ?? ''"))
    shown = {wide.nth(place).get_attribute("aria-label") for place in range(len(names)) if wide.nth(place).is_visible()}
    assert shown <= reached
    page.close()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_prints_whole(browser: Browser, name: str) -> None:
    page, _ = opened(browser, name, A4_PX, "light")
    page.emulate_media(media="print")
    assert page.evaluate(REACH % "false") == []
    assert page.locator("details > *:visible").count() == page.locator("details > *").count(), "folded away on paper"
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.close()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_read_without_scripts(browser: Browser, name: str) -> None:
    scripted, _ = opened(browser, name, 1440, "light")
    plain = browser.new_context(java_script_enabled=False).new_page()
    plain.goto(scripted.url)
    assert plain.locator("table").count() == scripted.locator("table").count() > 0
    told, told_with = (set(page.locator("main").inner_text().splitlines()) for page in (plain, scripted))
    assert told
    assert told <= told_with
    plain.context.close()
    scripted.close()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_small_enough_to_mail(name: str) -> None:
    assert (ROOT / f"reports/{name}.html").stat().st_size < MAX_BYTES


def test_a_table_sorts_by_a_click_on_its_head_and_a_finding_is_shown_by_name(browser: Browser) -> None:
    page, _ = opened(browser, "index", 1440, "light")
    table = page.locator("table.sorts").first
    cells = table.locator("tbody tr td:nth-child(2)")
    before = cells.all_inner_texts()
    table.locator("thead button").nth(1).click()
    assert [int(text) for text in cells.all_inner_texts()] == sorted(int(text) for text in before)
    assert table.locator("thead th").nth(1).get_attribute("aria-sort") == "ascending"
    table.locator("thead button").nth(1).press("Enter")
    assert [int(text) for text in cells.all_inner_texts()] == sorted((int(text) for text in before), reverse=True)
    first = page.locator("details.finding").first
    assert first.get_attribute("open") is None
    page.locator("label:has-text('Show') select").select_option(first.get_attribute("id"))
    assert first.get_attribute("open") is not None
    assert first.locator("img").count() > 0
    assert first.locator("img").first.evaluate("(shown) => shown.complete && shown.naturalWidth > 0")
    page.close()


@pytest.mark.parametrize(("name", "file"), [("index", "reports/comparison.json"), ("labels", "reports/labels/")])
def test_a_number_tells_where_it_comes_from_by_click_and_by_key(browser: Browser, name: str, file: str) -> None:
    page, said = opened(browser, name, 1440, "light")
    cell = page.locator("td[data-of]:visible").first
    shown = re.sub(r"[^\d.,+]", " ", cell.inner_text()).split()[0]
    cell.click()
    told = page.get_by_role("dialog", name="Where this number comes from")
    assert told.inner_text().startswith(f"{shown} is from {file}")
    command = told.locator("code").last.inner_text()
    words = shlex.split(command)
    assert words[:2] == ["make", "audit"]
    asked = dict(word.split("=", 1) for word in words[2:])
    value = addresses.resolve(files.read_json(ROOT / asked["FILE"]), asked["KEY"], command)
    assert f"{value:.3f}" == shown.lstrip("+") or f"{value:,}" == shown
    assert Axe().run(page).response["violations"] == []
    page.keyboard.press("Escape")
    assert not told.is_visible()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert told.is_visible()
    assert told.inner_text().split()[0] != shown
    told.get_by_role("button", name="Close").click()
    assert said == [page.url]
    assert page.locator("table:first-of-type td[tabindex='0']").count() >= 1
    page.close()
