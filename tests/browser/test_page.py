"""The page in headless Chromium, with a real mouse and keyboard; skipped where there is no Chromium."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn
from PIL import Image, ImageDraw
from selenium import webdriver
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from maskrcnn_benchmark import Predictor, load_model
from maskrcnn_benchmark.demo import server
from maskrcnn_benchmark.demo.desk import Limits
from maskrcnn_benchmark.engine.inference import Model
from tests.narrow import CONFIG, Narrow, make_narrow
from tests.narrow_mdetr import MDETR_CONFIG, narrow_mdetr

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1280,900"),
)
PATIENCE = 300  # seconds

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no Chromium here: install the packages chromium and chromium-driver"
)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Narrow:
    return make_narrow(tmp_path_factory.mktemp("narrow"))


@pytest.fixture(scope="module")
def model(narrow: Narrow) -> Model:
    return load_model(CONFIG, narrow.weights, device="cpu", opts=narrow.opts)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photo as a phone writes it: stored on its side, upright by its EXIF orientation."""
    image = Image.new("RGB", (300, 420), "#bcd")
    ImageDraw.Draw(image).ellipse((60, 80, 220, 240), fill="red")
    path = tmp_path_factory.mktemp("pictures") / "scene.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(path, exif=exif, quality=95)
    return path


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebDriver]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(executable_path=DRIVER))
    yield driver
    driver.quit()


def source_of(narrow: Narrow) -> server.Source:
    return server.Source(CONFIG, str(narrow.weights), "cpu", narrow.opts)


@contextmanager
def serving(model: Model, source: server.Source, limits: Limits | None = None) -> Iterator[str]:
    with server.open_listener("127.0.0.1", 0) as listener:
        running = uvicorn.Server(uvicorn.Config(server.build_app(model, source, limits), log_level="warning"))
        thread = threading.Thread(target=running.run, args=([listener],))
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        running.should_exit = True
        thread.join(PATIENCE)


@pytest.fixture(scope="module")
def url(model: Model, narrow: Narrow) -> Iterator[str]:
    with serving(model, source_of(narrow)) as url:
        yield url


@pytest.fixture
def encoded(model: Model, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every picture that the network encodes."""
    calls: list[int] = []
    encode = type(model.detector).encode_image
    monkeypatch.setattr(
        type(model.detector), "encode_image", lambda self, images: calls.append(1) or encode(self, images)
    )
    return calls


class Page:
    """The page as people use it."""

    def __init__(self, driver: WebDriver, url: str) -> None:
        self.driver = driver
        driver.get(url)
        self.wait(lambda: self["model"].text)

    def __getitem__(self, name: str) -> WebElement:
        return self.driver.find_element("id", name)

    def wait(self, condition: Callable[[], object]) -> None:
        WebDriverWait(self.driver, PATIENCE, 0.05).until(lambda _: condition())

    def run(self, script: str) -> object:
        return self.driver.execute_script(f"return {script}")

    def choose(self, path: Path) -> None:
        self["file"].send_keys(str(path))

    def open(self, path: Path) -> None:
        self.choose(path)
        self.wait(lambda: "\u00d7" in self["name"].text)

    def click(self, element: WebElement) -> None:
        ActionChains(self.driver).scroll_to_element(element).move_to_element(element).click().perform()

    def ask(self, words: str, mode: str = "names") -> None:
        """Type words and press the button; waits for the answer."""
        if mode != "names":
            self.click(self.driver.find_element("css selector", f"label[for={mode}]"))
        self["words"].clear()
        self["words"].send_keys(words)
        self.run("(found = null, draw())")
        self.click(self["find"])
        self.wait(lambda: self["result"].is_displayed() and not self["busy"].is_displayed())

    def lower(self) -> None:
        """Show what scores lower, down to nothing."""
        self["threshold"].send_keys(Keys.HOME)

    def boxes(self) -> list[list[float]]:
        """Corners of the boxes on the screen, in pixels of the picture; the best first."""
        corners = self.run(
            """(() => {
                const image = document.getElementById("image"), frame = image.getBoundingClientRect();
                const scale = image.naturalWidth / frame.width;
                return [...document.querySelectorAll(".box")].map((box) => box.getBoundingClientRect()).map((box) =>
                    [box.left - frame.left, box.top - frame.top, box.right - frame.left, box.bottom - frame.top]
                        .map((value) => value * scale));
            })()"""
        )
        assert isinstance(corners, list)
        return corners

    def parts(self) -> list[WebElement]:
        return self["parts"].find_elements("tag name", "button")

    def error(self) -> str:
        self.wait(lambda: self["error"].is_displayed())
        return self["error"].text


@pytest.fixture
def page(driver: WebDriver, url: str) -> Iterator[Page]:
    yield Page(driver, url)
    faults = [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]  # type: ignore
    assert [fault for fault in faults if "the server responded with a status of 4" not in fault] == []


def same_places(shown: list[list[float]], expected: list[list[float]], tolerance: float = 1.5) -> bool:
    assert len(shown) == len(expected)
    return all(b == pytest.approx(e, abs=tolerance) for b, e in zip(shown, expected, strict=True))


def test_boxes_are_where_the_api_finds_them(page: Page, model: Model, picture: Path, encoded: list[int]) -> None:
    assert "Drop a picture here" in page["empty"].text
    page.open(picture)
    assert page["name"].text == "scene.jpg · 420 \u00d7 300"
    page.ask("red circle, dog")
    page.lower()
    found = Predictor(model).set_image(picture).predict(labels=["red circle", "dog"])
    encoded.pop()  # that of the line above
    assert same_places(page.boxes(), found.boxes.tolist())
    rows = [row.text.split("\n") for row in page["list"].find_elements("tag name", "button")]
    assert rows[:5] == [[found.name(i), f"{found.scores[i]:.2f}"] for i in range(5)]
    page.ask("star")
    again = Predictor(model).set_image(picture).predict(labels=["star"])
    encoded.pop()
    assert same_places(page.boxes(), again.boxes.tolist())
    assert len(encoded) == 1, "other words do not encode the picture again"


def test_a_dropped_picture_is_asked_for_the_words_that_are_there(page: Page, picture: Path) -> None:
    page["words"].send_keys("dog")
    place = page["view"].rect
    spot = {"x": place["x"] + place["width"] / 2, "y": place["y"] + place["height"] / 2}
    data = {"items": [], "files": [str(picture)], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        page.driver.execute_cdp_cmd("Input.dispatchDragEvent", {"type": kind, **spot, "data": data})
    page.wait(lambda: page["result"].is_displayed())
    assert "scene.jpg" in page["name"].text
    assert [part.text.split()[0] for part in page.parts()] == ["dog"]


def test_the_slider_hides_and_shows_without_the_server(page: Page, model: Model, picture: Path) -> None:
    page.open(picture)
    page.ask("red circle, dog")
    scores = Predictor(model).set_image(picture).predict(labels=["red circle", "dog"]).scores.tolist()
    assert max(scores) < 0.3, "the weights are random"
    assert page["summary"].text == f"Nothing scores 0.30 or more. The best scores {max(scores):.2f}."
    assert page.boxes() == []
    asked = len(page.run("performance.getEntriesByType('resource')"))  # type: ignore[arg-type]
    page.click(page["lower"])
    step = int(100 * max(scores)) / 100
    assert len(page.boxes()) == sum(score >= step for score in scores) > 0
    page["threshold"].send_keys(Keys.ARROW_LEFT)
    assert page["score"].text == f"{step - 0.01:.2f}"
    assert len(page.boxes()) == sum(score >= step - 0.01 for score in scores)
    page.lower()
    assert len(page.boxes()) == len(scores)
    assert len(page.run("performance.getEntriesByType('resource')")) == asked  # type: ignore[arg-type]


def test_answers_come_while_one_types_where_they_are_fast(page: Page, picture: Path) -> None:
    page.open(picture)
    page.ask("dog")
    page.run("(took = 0)")
    page["words"].send_keys(", dog")
    page["words"].send_keys("star")
    page.wait(lambda: page.run("found.parts.map((part) => part.text).join()") == "dog,dogstar")
    assert not page["error"].is_displayed(), "what is half typed is no mistake"


def test_a_phrase_shows_its_boxes(page: Page, model: Model, picture: Path) -> None:
    page.open(picture)
    caption = "a red circle left of the dog"
    page.ask(caption, "phrases")
    page.lower()
    found = Predictor(model).set_image(picture).predict(caption=caption, phrases=["red circle", "dog"])
    circle = page.parts()[0]
    assert page.run("document.getElementById('parts').firstChild.textContent") == "a "
    page.click(circle)
    assert same_places(page.boxes(), found[found.labels == 1].boxes.tolist())
    assert [part.get_attribute("aria-pressed") for part in page.parts()] == ["true", "false"]
    page.click(page.parts()[1])
    assert same_places(page.boxes(), found[found.labels == 2].boxes.tolist())
    page.click(page.parts()[1])
    assert len(page.boxes()) == len(found)
    first = page["list"].find_element("tag name", "button")
    ActionChains(page.driver).move_to_element(first).perform()
    assert page.run("[...document.querySelectorAll('.box')].findIndex((box) => box.classList.contains('on'))") == 0


def test_what_is_copied_is_what_the_api_gives(page: Page, model: Model, picture: Path) -> None:
    grant = {"origin": page.driver.current_url, "permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    page.driver.execute_cdp_cmd("Browser.grantPermissions", grant)
    page.open(picture)
    page.ask("red circle, dog")
    page.lower()
    page.click(page["json"])
    page.wait(lambda: page["how"].text == "Copied.")
    found = Predictor(model).set_image(picture).predict(labels=["red circle", "dog"])
    expected = json.loads(found.to_json())
    assert json.loads(clipboard(page)) == {**expected, "file": "scene.jpg"}
    page.click(page["python"])
    page.wait(lambda: page["how"].text.startswith("Copied. Run"))
    lines = clipboard(page)
    assert "predict(labels=['red circle', 'dog'], min_score=0)" in lines
    compile(lines, "copied", "exec")


def clipboard(page: Page) -> str:
    return page.driver.execute_async_script("navigator.clipboard.readText().then(arguments[0])")


def test_mistakes_are_told_and_nothing_is_lost(page: Page, picture: Path, tmp_path: Path, encoded: list[int]) -> None:
    page.click(page["find"])
    assert "choose one first" in page.error()
    page.open(picture)
    assert not page["error"].is_displayed()
    page.click(page["find"])
    assert page.error() == "No words yet: type what to look for."
    page.ask("dog")
    page["words"].clear()
    page["words"].send_keys("dog, dog", Keys.ENTER)
    page.wait(lambda: "both written 'dog'" in page.error())
    page["words"].send_keys(Keys.ESCAPE)
    assert not page["error"].is_displayed()
    notes, big = tmp_path / "notes.txt", tmp_path / "big.jpg"
    notes.write_text("dear diary")
    with big.open("wb") as file:
        file.truncate(50 * 1024 * 1024)
    page.choose(notes)
    page.wait(lambda: "notes.txt: not a picture" in page.error())
    page.choose(big)
    page.wait(lambda: page.error() == "big.jpg has 50 MiB: pictures may have up to 20 MiB.")
    assert "scene.jpg" in page["name"].text
    page.ask("star")
    assert [part.text.split()[0] for part in page.parts()] == ["star"]
    assert len(encoded) == 1


def test_a_picture_that_the_server_let_go_of_is_sent_again(
    driver: WebDriver, model: Model, narrow: Narrow, picture: Path, encoded: list[int]
) -> None:
    with serving(model, source_of(narrow), Limits(memory=1)) as url:
        page = Page(driver, url)
        page.open(picture)
        key = page.run("key")
        driver.switch_to.new_window("tab")
        Page(driver, url).open(picture)
        driver.close()
        driver.switch_to.window(driver.window_handles[0])
        page.ask("dog")
        assert page.run("key") != key
        assert not page["error"].is_displayed()
        assert len(encoded) == 3


def test_everything_can_be_done_with_the_keyboard(page: Page, picture: Path) -> None:
    def press(*keys: str) -> WebElement:
        ActionChains(page.driver).send_keys(*keys).perform()
        return page.driver.switch_to.active_element

    def seen() -> bool:
        outlined = (
            "document.activeElement.matches('.sr') ? document.activeElement.nextElementSibling : document.activeElement"
        )
        return page.run(f"getComputedStyle({outlined}).outlineStyle") == "solid"

    chosen = press(Keys.TAB)
    assert (chosen.get_attribute("id"), seen()) == ("file", True)
    chosen.send_keys(str(picture))
    page.wait(lambda: page.driver.switch_to.active_element.get_attribute("id") == "words")
    press("red circle, dog", Keys.ENTER)
    page.wait(lambda: page["result"].is_displayed())
    places = []
    for _ in range(3):
        places.append(press(Keys.TAB).get_attribute("id"))
        assert seen()
    assert places == ["find", "threshold", ""]
    ActionChains(page.driver).key_down(Keys.SHIFT).send_keys(Keys.TAB).key_up(Keys.SHIFT).perform()
    press(Keys.HOME)
    count = len(page.boxes())
    part = press(Keys.TAB)
    assert part.get_attribute("aria-label") == f"red circle, {part.text.split()[-1]} boxes"
    press(Keys.ENTER)
    assert 0 < len(page.boxes()) < count
    assert seen(), "the phrase keeps the focus"
    press(Keys.ESCAPE)
    assert len(page.boxes()) == count
    press(Keys.TAB, Keys.TAB)  # over the second phrase to the list
    assert page.run("document.querySelectorAll('.box.on').length") == 1
    names = page.run(
        "[...document.querySelectorAll('input, button, textarea')].filter((e) => e.offsetParent &&"
        " !(e.labels?.length || e.ariaLabel || e.textContent.trim())).map((e) => e.outerHTML)"
    )
    assert names == []


def test_it_fits_a_phone(page: Page, model: Model, picture: Path) -> None:
    metrics = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        page.open(picture)
        page.ask("a rather long name of a thing that nobody has, dog")
        page.lower()
        assert page.run("document.documentElement.scrollWidth") == 360
        small = page.run(
            "[...document.querySelectorAll('button, .button, .modes label, #words')].filter((e) => e.offsetParent"
            " && e.getBoundingClientRect().height < 32).map((e) => e.outerHTML)"
        )
        assert small == []
        labels = ["a rather long name of a thing that nobody has", "dog"]
        expected = Predictor(model).set_image(picture).predict(labels=labels).boxes.tolist()
        assert same_places(page.boxes(), expected, tolerance=2)
        assert page["stage"].rect["y"] < page["form"].rect["y"]
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_masks_and_words_of_a_sentence(driver: WebDriver, picture: Path, tmp_path: Path) -> None:
    model, weights, opts = narrow_mdetr(tmp_path)
    found = Predictor(model).set_image(picture).predict(caption="a red circle", top=1)
    assert found.masks is not None
    with serving(model, server.Source(MDETR_CONFIG, str(weights), "cpu", opts)) as url:
        page = Page(driver, url)
        page.open(picture)
        page.ask("a red circle", "sentence")
        page.lower()
        assert len(page.boxes()) == 10, "one for each query"
        best = page["list"].find_element("tag name", "button")
        assert best.text.split("\n")[0] == found.name(0)
        assert {part.text.split("\n")[0] for part in page.parts()} == set(
            Predictor(model).set_image(picture).predict(caption="a red circle").names.values()
        )
        page.run("(found.detections = found.detections.slice(0, 1), draw())")
        painted = page.run(
            """(() => {
                const canvas = at("masks"), {width, height} = canvas;
                const {data} = canvas.getContext("2d").getImageData(0, 0, width, height);
                const inside = Array.from({length: width * height}, (_, i) => data[4 * i + 3] > 0);
                return [width, height, canvas.hidden, inside];
            })()"""
        )
    mask = found.masks[0]
    assert painted == [mask.shape[1], mask.shape[0], False, mask.flatten().tolist()]
