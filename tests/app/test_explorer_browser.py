"""The explorer in a headless browser: load, drop, slide, click, swipe, without an error on the console."""

from __future__ import annotations

import base64
import io
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from meanshifter.app.explorer import Explorer
from meanshifter.inference.ensemble import Ensemble
from meanshifter.inference.predictor import Predictor
from tests.app.conftest import Client, served

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
)
DROP = """
const bytes = Uint8Array.from(atob(arguments[1]), character => character.charCodeAt(0)), transfer = new DataTransfer();
transfer.items.add(new File([bytes], arguments[0], {type: "image/png"}));
document.dispatchEvent(new DragEvent("drop", {dataTransfer: transfer, bubbles: true, cancelable: true}));
"""
SLIDE = """
const slider = document.getElementById(arguments[0]);
slider.value = arguments[1];
slider.dispatchEvent(new Event("input", {bubbles: true}));
"""
PIXEL = """
const context = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
context.drawImage(document.getElementById("canvas"), -arguments[0], -arguments[1]);
return [...context.getImageData(0, 0, 1, 1).data.slice(0, 3)];
"""


class Page:
    """The page in a browser."""

    def __init__(self, browser: webdriver.Chrome) -> None:
        self.browser = browser

    def settle(self) -> None:
        """Wait until nothing is being asked of the server or animated."""
        end = time.monotonic() + 60
        while self.browser.execute_script("return document.body.dataset.busy") != "0":
            assert time.monotonic() < end, self.text("#status")
            time.sleep(0.02)

    def find(self, selector: str) -> WebElement:
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        return self.find(selector).text

    def texts(self, selector: str) -> list[str]:
        return [element.text for element in self.browser.find_elements(By.CSS_SELECTOR, selector)]

    def view(self, name: str) -> None:
        self.find(f"#views button[value={name}]").click()
        self.settle()

    def slide(self, slider: str, value: float) -> None:
        self.browser.execute_script(SLIDE, slider, value)
        self.settle()

    def move(self, x: int, y: int, *, click: bool = False) -> None:
        """To a pixel of the image, and click there."""
        canvas = self.find("#canvas")
        scale = canvas.size["width"] / float(self.browser.execute_script("return arguments[0].width", canvas))
        right, down = ((place + 0.5) * scale for place in (x, y))
        offset = round(right - canvas.size["width"] / 2), round(down - canvas.size["height"] / 2)
        actions = ActionChains(self.browser).move_to_element_with_offset(canvas, *offset)
        (actions.click() if click else actions).perform()
        self.settle()

    def pixel(self, x: int, y: int) -> tuple[int, ...]:
        """What the canvas shows there."""
        return tuple(self.browser.execute_script(PIXEL, x, y))

    def until(self, selector: str, words: str) -> str:
        """The text of an element, once it holds some words."""
        end = time.monotonic() + 30
        while words not in (found := self.text(selector)):
            assert time.monotonic() < end, found
            time.sleep(0.02)
        return found

    def logged(self) -> list[Any]:
        """Errors on the console."""
        return [entry["message"] for entry in self.browser.get_log("browser")]

    def overflow(self, width: int) -> int:
        """Pixels by which the page is too wide for a screen."""
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        script = "const root = document.documentElement; return root.scrollWidth - root.clientWidth"
        return int(self.browser.execute_script(script))


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    """A headless browser; skips, with a reason, where there is none."""
    program = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("no browser: install Debian's packages chromium and chromium-driver, or Chrome with its driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS, "--window-size=1400,1000"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    running = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield running
    running.quit()


@pytest.fixture
def page(browser: webdriver.Chrome, client: Client) -> Page:
    """The page, opened anew."""
    found = Page(browser)
    browser.get(f"http://127.0.0.1:{client.port}/")
    found.settle()
    return found


def test_load_hover_slide_click_and_swipe(page: Page, explorer: Explorer, folder: Path) -> None:
    shifter, plain = (explorer.predictors[name] for name in ("shifter", "plain"))
    image = folder / "images/scene0.png"
    before, names = shifter(image, mean_shift_layers=[0, 2]), shifter.model.label_space.names

    assert page.texts(".panel h2") == ["shifter", "plain"]
    shares = {name: 100 * share for name, share in before[2].class_areas().items()}
    shown = [row.rsplit(" ", 2) for row in page.texts(".panel:first-child tbody tr")]
    assert [name for name, _, _ in shown] == list(shares)
    assert [float(share) for _, share, _ in shown] == pytest.approx(list(shares.values()), abs=0.51)

    page.move(10, 50)
    sure = page.until("#readout", "%")
    assert f"x 10, y 50 · shifter: {names[before[2].labels[50, 10]]}" in sure
    assert f"plain: {names[plain(image).labels[50, 10]]}" in sure

    # opacity 1 is the palette itself, on both sides of the border
    page.slide("opacity", 1)
    palette = shifter.model.label_space.palette
    assert page.pixel(10, 50) == palette[before[2].labels[50, 10]]
    assert page.pixel(90, 50) == palette[plain(image).labels[50, 90]]
    page.slide("step", 0)
    differs = np.argwhere(before[0].labels != before[2].labels)
    y, x = next((int(y), int(x)) for y, x in differs if x < 40)
    assert page.pixel(x, y) == palette[before[0].labels[y, x]]
    page.find("#trained").click()
    page.settle()
    assert page.pixel(x, y) == palette[before[2].labels[y, x]]

    tokens = explorer.tokens("shifter", "0")
    for step in (0, 3):
        page.slide("step", step)
        count = int(tokens.modes(step).max()) + 1
        assert page.until(".panel .modes", f"{step} step").startswith(f"{count} mode")

    page.move(20, 20, click=True)
    assert page.find("button[value=similarity]").get_attribute("aria-checked") == "true"
    token = 20 // 8 * 12 + 20 // 8
    weights = tokens.weights(token, 3)
    assert weights is not None
    neighbors = np.exp(-(weights * np.log(np.maximum(weights, 1e-30))).sum())
    said = page.text(".panel .patch")
    assert said.startswith("Row 2, column 2;")
    assert f"{tokens.similarity(token, 3).min():.2f} (dark)" in said
    assert f"{neighbors:.1f} patches" in said
    assert page.pixel(20, 20) == (253, 231, 37)  # as similar to itself as can be
    page.view("weights")
    page.view("modes")

    # swipe by mouse and by keyboard: what was the first model's becomes the second's
    page.view("labels")
    page.slide("step", 2)
    divider = page.find("#divider")
    width = page.find("#canvas").size["width"]
    ActionChains(page.browser).drag_and_drop_by_offset(divider, -round(0.45 * width), 0).perform()
    assert page.pixel(30, 50) == palette[plain(image).labels[50, 30]]
    divider.send_keys(Keys.END)
    assert page.pixel(30, 50) == page.pixel(30, 50) == palette[before[2].labels[50, 30]]
    assert page.logged() == []


def test_errors_and_ground_truth(page: Page, explorer: Explorer, folder: Path) -> None:
    truth = np.asarray(Image.open(folder / "masks/scene0.png"))
    labels = explorer.predictors["shifter"](folder / "images/scene0.png").labels
    known = truth != 255
    assert page.text(".panel .score").startswith(f"{100 * (labels != truth)[known].mean():.1f} %")
    page.slide("opacity", 1)
    page.view("truth")
    assert page.pixel(10, 50) == explorer.predictors["shifter"].model.label_space.palette[truth[50, 10]]
    page.view("errors")
    y, x = next((int(y), int(x)) for y, x in np.argwhere(known & (labels != truth)) if x < 40)
    assert page.pixel(x, y) == (230, 30, 40)
    assert page.pixel(10, 2) == (128, 128, 128)
    assert page.logged() == []


def test_a_dropped_image_is_opened_and_models_are_changed(page: Page, client: Client) -> None:
    pixels = np.random.default_rng(2).integers(0, 255, (40, 56, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    page.browser.execute_script(DROP, "dropped.png", base64.b64encode(buffer.getvalue()).decode())
    time.sleep(0.05)
    page.settle()
    assert page.find("#image option:checked").text == "dropped.png"
    assert page.browser.execute_script("const c = document.getElementById('canvas'); return [c.width, c.height]") == [
        56,
        40,
    ]
    assert not page.find("button[value=truth]").is_displayed()
    page.find("#model-1 option[value='']").click()
    page.settle()
    assert page.texts(".panel h2") == ["shifter"]
    assert not page.find("#divider").is_displayed()
    page.find("#next").click()
    page.settle()
    assert page.find("#image option:checked").text == "scene0"
    assert page.logged() == []
    page.browser.execute_script(DROP, "broken.png", base64.b64encode(b"no image").decode())
    page.until("#status", "broken.png:")
    assert "bad" in str(page.find("#status").get_attribute("class"))
    assert all("400" in message for message in page.logged())  # the refusal itself


def test_no_screen_is_too_narrow(page: Page) -> None:
    page.move(20, 20, click=True)
    assert [page.overflow(width) for width in (1400, 800, 400)] == [0, 0, 0]


def test_what_an_export_lacks_is_hidden_with_a_reason(
    browser: webdriver.Chrome, explorer: Explorer, folder: Path
) -> None:
    members = [predictor.model for predictor in explorer.predictors.values()]
    both = Predictor(Ensemble(members[1:] * 2), short_side=None, window=None)
    with served(Explorer({"both": both}, folder / "images")) as client:
        page = Page(browser)
        browser.get(f"http://127.0.0.1:{client.port}/")
        page.settle()
        hidden = [
            name for name in ("modes", "similarity", "weights") if not page.find(f"button[value={name}]").is_displayed()
        ]
        assert hidden == ["modes", "similarity", "weights"]
        assert "ensemble" in page.text(".panel .note")
        assert not page.find(".panel .tokens").is_displayed()
        page.move(20, 20, click=True)
        assert page.logged() == []
