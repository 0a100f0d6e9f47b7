"""The page in a real browser, as a person uses it."""

import io
import re
import shutil
import time
import urllib.request
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.skipif(find_spec("selenium") is None, reason="needs selenium"),
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="needs chromium and chromedriver"),
]
PATIENCE = 40
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1440,1100"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


class Page:
    """What a person can see and do."""

    def __init__(self, browser, address):
        self.browser, self.address = browser, address
        self.open()

    def open(self):
        self.browser.get(self.address)
        self.wait(lambda: self.all("#prompt textarea") and self.all("#go-draw"))
        self.wait(lambda: "Images will appear here." in self.status)

    def all(self, css):
        return self.browser.find_elements("css selector", css)

    def one(self, css):
        return self.wait(lambda: [element for element in self.all(css) if element.is_displayed() or "file" in css])[0]

    def wait(self, condition):
        """What `condition` gives once it is true; elements may be replaced while one looks."""
        from selenium.common.exceptions import StaleElementReferenceException

        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            try:
                if found := condition():
                    return found
            except StaleElementReferenceException:
                pass
            time.sleep(0.1)
        raise AssertionError(f"waited for {PATIENCE} s; the page says {self.status!r}, {self.toasts!r}")

    @property
    def status(self):
        return " ".join(element.text for element in self.all("#status"))

    @property
    def toasts(self):
        return " ".join(element.text for element in self.all(".toast-body"))

    @property
    def sources(self):
        return [image.get_attribute("src") for image in self.all("#images .grid-wrap img, #images .preview img")]

    def type(self, css, text):
        field = self.one(css)
        # Gradio's fields follow key strokes: clear() alone does not reach them.
        field.send_keys("\ue009a\ue000", text)

    def number(self, name, value):
        self.type(f"input[aria-label='number input for {name}']", f"{value}\ue004")

    def tab(self, name):
        self.wait(lambda: [tab for tab in self.all("#tasks button[role=tab]") if tab.text == name])[0].click()

    def choose(self, label, name):
        self.one(f"input[aria-label='{label}']").click()
        self.wait(lambda: [each for each in self.all("[role=option]") if each.text.strip().endswith(name)])[0].click()

    def finish(self):
        self.wait(lambda: re.search(r"pixels in [\d.]+ s", self.status))
        return [pixels(source) for source in self.wait(lambda: self.sources)]


@pytest.fixture
def page(browser, app):
    return Page(browser, app)


def pixels(source):
    with urllib.request.urlopen(source, timeout=30) as answer:
        return np.asarray(Image.open(io.BytesIO(answer.read())).convert("RGB"))


def test_generate_see_the_seed_and_use_it_again(page):
    page.type("#prompt textarea", "a cat")
    page.number("Images", 2)
    page.number("Steps", 4)
    page.one("#go-draw").click()
    first = page.finish()
    assert [image.shape for image in first] == [(8, 8, 3)] * 2
    seed = page.one("#seed-used input, #seed-used textarea").get_attribute("value")
    page.one("#seed-again").click()
    page.wait(lambda: page.one("#seed input, #seed textarea").get_attribute("value") == seed)
    # One image now, so that the page shows when it is done: the same image has the same address.
    page.number("Images", 1)
    page.one("#go-draw").click()
    page.wait(lambda: page.status.startswith("1 image "))
    np.testing.assert_array_equal(page.finish(), first[:1])


def start_a_long_one(page):
    page.type("#prompt textarea", "a cat")
    page.number("Images", 8)
    page.number("Steps", 250)
    page.one("#go-draw").click()
    page.wait(lambda: "Generating" in page.status)


def generate_one_at_once(page):
    """What was stopped before does not hold it up."""
    page.number("Images", 1)
    page.number("Steps", 4)
    begun = time.monotonic()
    page.one("#go-draw").click()
    assert len(page.finish()) == 1
    assert time.monotonic() - begun < 15


def test_cancel_stops_it_and_the_next_one_runs(page):
    start_a_long_one(page)
    previews = page.wait(lambda: page.sources)
    page.wait(lambda: page.sources and page.sources != previews)  # it is live
    page.one("#stop").click()
    page.wait(lambda: "Stopped" in page.status)
    shown = page.sources
    time.sleep(1)
    assert "Stopped" in page.status
    assert page.sources == shown
    generate_one_at_once(page)


def test_inpaint_where_it_is_painted(page, tmp_path):
    from selenium.webdriver import ActionChains

    rows = np.linspace(0, 255, 320).astype(np.uint8)
    image = np.broadcast_to(rows[:, None, None], (320, 320, 3))
    Image.fromarray(image).save(tmp_path / "image.png")
    page.choose("Base model", "inpaint (8 px, inpainting)")
    page.type("#prompt textarea", "a cat")
    page.number("Images", 1)
    page.number("Steps", 4)
    page.tab("Inpaint")
    page.wait(lambda: page.all("#editor button[aria-label='Upload']"))
    time.sleep(1)  # the editor shows its buttons before it listens
    page.one("#editor input[type=file]").send_keys(str(tmp_path / "image.png"))
    page.wait(lambda: page.all("#editor button[aria-label='Brush Size']"))
    canvas = page.one("#editor canvas")
    ActionChains(page.browser).move_to_element(canvas).click_and_hold().move_by_offset(30, 0).move_by_offset(
        30, 0
    ).release().perform()
    page.one("#go-inpaint").click()
    [result] = page.finish()
    kept = np.asarray(Image.fromarray(image).resize((8, 8), Image.Resampling.BICUBIC))
    changed = np.abs(result.astype(int) - kept).max(-1) > 1
    assert 2 <= changed.sum() < 20
    assert changed[3:5, 4:6].mean() > 0.7
    assert not changed[:2].any()


def test_a_bad_upload_is_said_in_one_line(page, tmp_path):
    (tmp_path / "image.png").write_bytes(b"no image at all")
    page.type("#prompt textarea", "a cat")
    page.tab("Image to image")
    page.one("#init-image input[type=file]").send_keys(str(tmp_path / "image.png"))
    page.wait(lambda: page.all("#init-image img"))
    page.one("#go-redraw").click()
    page.wait(lambda: "not a readable image" in page.toasts)
    page.wait(lambda: page.status.startswith("Failed: not a readable image"))
    page.tab("Text to image")
    page.number("Images", 1)
    page.number("Steps", 4)
    page.one("#go-draw").click()
    assert len(page.finish()) == 1


def test_a_model_that_cannot_be_loaded_is_not_chosen(page):
    page.choose("Base model", "broken (8 px)")
    page.wait(lambda: "broken could not be loaded" in page.toasts)
    page.wait(lambda: page.one("input[aria-label='Base model']").get_attribute("value") == "models/base (8 px)")


def test_adapters_with_a_strength_and_a_grid(page):
    page.one("#lora input").click()
    page.wait(lambda: [each for each in page.all("[role=option]") if each.text.strip().endswith("lora")])[0].click()
    page.wait(lambda: page.one("input[aria-label='number input for Strength of lora']"))
    page.type("#prompt textarea", "a cat")
    page.tab("X/Y grid")
    values = "#x-values textarea, #x-values input"
    page.choose("X: from left to right", "Steps")
    page.wait(lambda: page.one(values).get_attribute("value") == "2, 3, 6")
    page.one("#go-compare").click()
    page.wait(lambda: "3 images in a grid" in page.status)
    assert [image.shape[1] for image in page.finish()] == [400]
    # It has neither adapters nor settings of its own.
    page.choose("Base model", "inpaint (8 px, inpainting)")
    page.wait(lambda: page.one("input[aria-label='number input for Steps']").get_attribute("value") == "50")
    page.wait(lambda: not any(element.is_displayed() for element in page.all("#lora")))
    page.wait(lambda: page.one(values).get_attribute("value") == "25, 50, 100")


def test_reloading_ends_the_request_and_starts_afresh(page):
    start_a_long_one(page)
    page.open()
    assert not page.sources
    page.type("#prompt textarea", "a dog")
    generate_one_at_once(page)


def test_a_second_person_waits_and_may_go_without_disturbing_the_first(page, browser, app):
    start_a_long_one(page)
    first = browser.current_window_handle
    browser.switch_to.new_window("tab")
    second = Page(browser, app)
    second.type("#prompt textarea", "a dog")
    second.one("#go-draw").click()
    second.wait(lambda: "Queued…" in second.status)
    second.one("#stop").click()
    second.wait(lambda: "Stopped" in second.status)
    browser.close()
    browser.switch_to.window(first)
    percent = lambda: [int(number) for number in re.findall(r"Generating: (\d+)%", page.status)]  # noqa: E731
    before = page.wait(percent)
    page.wait(lambda: percent() > before)
    page.one("#stop").click()
    page.wait(lambda: "Stopped" in page.status)
