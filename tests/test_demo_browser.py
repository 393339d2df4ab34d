"""The demo in a real browser without a screen, at a desk's and at a phone's width: what people do with it works."""

from __future__ import annotations

import re
import shutil

import pytest

from conftest import random_pictures
from demo_fixtures import make_run

pytest.importorskip("gradio", reason="the demo's extra is not installed: gradio")
pytest.importorskip("pytorch_grad_cam", reason="the demo's extra is not installed: grad-cam")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: it drives the browser")

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SWITCHES = "no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update "
SWITCHES += "disable-sync"
WIDTHS = {"desk": (1280, 900), "phone": (390, 844)}
UNLABELLED = """() => [...document.querySelectorAll("button, input:not([type=file]), select, textarea")]
    .filter(control => control.offsetParent !== null)
    .filter(control => !(control.innerText || control.getAttribute("aria-label") || control.title
        || [...(control.labels || [])].map(label => label.innerText).join("").trim()))
    .map(control => control.outerHTML.slice(0, 200))"""


@pytest.fixture(scope="module")
def browser():
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"none of the browsers {', '.join(BROWSERS)} is installed")
    with playwright.sync_playwright() as driver:
        switches = [f"--{name}" for name in SWITCHES.split()]
        started = driver.chromium.launch(executable_path=path, args=switches, headless=True)
        yield started
        started.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    from pacl.hub_cards.demo import Sources
    from pacl.hub_cards.demo.app import build_app, launch

    app = build_app(Sources.find(str(make_run(tmp_path_factory.mktemp("demo") / "run"))))
    yield launch(app, prevent_thread_lock=True, quiet=True)
    app.close()


@pytest.fixture(params=WIDTHS)
def page(request, browser, address):
    """The open app; afterwards, that nothing went to another machine and nothing was wider than the window."""
    width, height = WIDTHS[request.param]
    opened = browser.new_page(viewport={"width": width, "height": height})
    asked, problems = [], []
    opened.on("request", lambda sent: asked.append(sent.url))
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.goto(address)
    opened.wait_for_selector("#emotions")
    yield opened
    elsewhere = [url for url in asked if not re.match(r"(data|blob):|https?://127\.0\.0\.1[:/]", url)]
    opened.close()
    assert asked
    assert not elsewhere
    assert not problems


def assert_fits(page):
    wide, window = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert wide <= window, f"{wide} pixels of page in a window of {window}"


def upload(page, path):
    page.locator("#picture input[type=file]").set_input_files(str(path))


def words_shown(page):
    return page.locator("#emotions .bar-name").all_inner_texts()


def tab_to(page, selector, most=40):
    """Press Tab until the focus is at the selector."""
    for _ in range(most):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"the Tab key does not lead to {selector}")


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "given.png"
    random_pictures(1, seed=5, size=64)[0].save(path)
    return path


def test_a_picture_is_read_and_compared_and_the_words_can_be_changed(page, picture):
    upload(page, picture)
    page.wait_for_selector("#emotions .bars")
    assert sorted(words_shown(page)) == ["anger", "fear", "joy", "love", "sadness", "surprise"]
    shares = [int(text.rstrip("%")) for text in page.locator("#emotions .bar-value").all_inner_texts()]
    assert shares == sorted(shares, reverse=True)
    assert 97 <= sum(shares) <= 103
    assert page.locator("#emotions img").count() == 2
    page.wait_for_selector("#comparison .near img")
    assert page.locator("#comparison h3").all_inner_texts() == ["Before PACL", "After PACL"]
    assert page.locator("img:not([alt])").count() == 0

    tab_to(page, "#vocabulary input")
    page.keyboard.type("Ekman")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('#emotions').innerText.includes('disgust')")
    assert "love" not in words_shown(page)
    assert_fits(page)


def test_own_words_and_sentences_take_their_place(page):
    page.get_by_role("button", name="3:").click()
    page.wait_for_selector("#emotions .bars")
    page.locator("#vocabulary input").fill("My own words")
    page.keyboard.press("Enter")
    own = page.get_by_label("Your own words, with commas between")
    own.fill("happy, gloomy")
    own.press("Enter")
    page.wait_for_function("document.querySelectorAll('#emotions .bar-name').length == 2")
    assert sorted(words_shown(page)) == ["gloomy", "happy"]
    own.fill("happy")
    page.get_by_role("button", name="Name the emotions").click()
    page.wait_for_function("document.querySelector('#emotions').innerText.includes('at least two')")
    assert_fits(page)


def test_a_file_that_is_no_picture_takes_the_place_of_the_old_result(page, tmp_path):
    page.get_by_role("button", name="1:").click()
    page.wait_for_selector("#emotions .bars")
    page.wait_for_selector("#comparison .near img")
    page.get_by_role("button", name="Remove Image").or_(page.get_by_role("button", name="Clear")).first.click()
    path = tmp_path / "notes.png"
    path.write_text("no picture")
    upload(page, path)
    for place in ("#emotions", "#comparison"):
        page.wait_for_function(
            "place => document.querySelector(place).innerText.includes('notes.png cannot be opened as a picture')",
            arg=place,
        )
        assert page.locator(f"{place} .bars").count() == 0
    assert_fits(page)


def test_thresholds_move_the_shares_from_the_keyboard_and_pages_turn(page):
    page.get_by_role("tab", name="Posts").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#cards img")
    strong = page.locator("tr[data-partition=strong] td").first
    assert strong.inner_text() == page.locator("tr[data-partition=strong] td").last.inner_text() != "0.0%"

    tab_to(page, "#theta_factual input[type=range]")
    before = strong.inner_text()
    for _ in range(3):
        page.keyboard.press("PageDown")
    page.wait_for_function(
        "before => document.querySelector('tr[data-partition=strong] td').innerText != before", arg=before
    )
    page.keyboard.press("End")
    page.wait_for_function("document.querySelector('tr[data-partition=strong] td').innerText == '0.0%'")
    page.wait_for_function("document.querySelector('#cards').innerText.includes('No post is in this partition')")
    page.keyboard.press("Home")
    page.wait_for_function("document.querySelector('tr[data-partition=weak] td').innerText == '0.0%'")

    tab_to(page, "#theta_emotional input[type=range]")
    page.keyboard.press("Home")
    page.wait_for_function("document.querySelector('tr[data-partition=strong] td').innerText == '100.0%'")
    page.wait_for_function("document.querySelector('#where').innerText.includes('Page 1 of 5, 60 posts')")
    first = page.locator("#cards img").first.get_attribute("alt")
    page.get_by_role("button", name="Next page").click()
    page.wait_for_function("document.querySelector('#where').innerText.includes('Page 2 of 5')")
    page.wait_for_function("first => document.querySelector('#cards img').alt != first", arg=first)
    assert_fits(page)


def test_every_control_has_a_name_in_both_tabs(page):
    assert page.evaluate(UNLABELLED) == []
    page.get_by_role("tab", name="Posts").click()
    page.wait_for_selector("#cards img")
    assert page.evaluate(UNLABELLED) == []
    assert_fits(page)
