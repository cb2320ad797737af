"""What an annotator sees and clicks: a headless Chromium on the real Label Studio.

Screenshots are kept in GLEANER_TEST_OUTPUT, where that is set, else in the test's temporary folder.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.common.exceptions import ElementClickInterceptedException, StaleElementReferenceException
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait
from sklearn.datasets import load_digits

from tasks.labeling import Answer, Task
from tasks.labeling.label_studio import LabelStudio
from tasks.ledger import task_key
from tasks.store import sha256
from tests.annotators import events_of, make_place
from tests.real_label_studio import RealLabelStudio, connected

pytestmark = pytest.mark.slow

CLASSES = ("zero", '<b>one</b> & "1"', "$two", "שלוש")
ARMS = ("active", "control", "holdout", "active")
SWITCHES = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--window-size=1280,900",
)  # fmt: skip

MOVING = (ElementClickInterceptedException, StaleElementReferenceException)  # a page that is still being drawn


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip(
            "chromium: chromium and chromedriver (Debian's packages chromium, chromium-driver) are not on the PATH"
        )
    options = Options()
    options.binary_location = chromium
    for switch in (*SWITCHES, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(switch)
    running = webdriver.Chrome(options=options, service=Service(driver))
    yield running
    running.quit()


@pytest.fixture
def tool(real: RealLabelStudio, tmp_path: Path) -> LabelStudio:
    """Four digits of 8 x 8 pixels wait for a label; the model suggests a class for those of the arm active."""
    tool = connected(real, make_place(tmp_path, classes=CLASSES))
    tool.push([_task(tmp_path, rank, arm) for rank, arm in enumerate(ARMS)])
    return tool


def _task(root: Path, rank: int, arm: str) -> Task:
    image = root / f"{rank}.png"
    Image.fromarray((load_digits().images[rank] * 15.9).astype(np.uint8)).save(image)
    item = sha256(image)
    task = Task(task_key("camp-1", 0, item), item, 0, rank, arm, image, 0.5)
    return replace(task, predicted=CLASSES[rank], confidence=0.8) if arm == "active" else task


class Page:
    """The labeling stream of a project, as a person uses it."""

    def __init__(self, browser: webdriver.Chrome, url: str) -> None:
        self.browser, self.url = browser, url
        self.wait = WebDriverWait(browser, 60, ignored_exceptions=MOVING)

    def log_in(self, email: str, password: str) -> None:
        self.browser.get(f"{self.url}/user/login/")
        self.browser.find_element(By.NAME, "email").send_keys(email)
        self.browser.find_element(By.NAME, "password").send_keys(password)
        self.browser.find_element(By.NAME, "password").submit()
        self.wait.until(lambda browser: "/user/login" not in browser.current_url)

    def label_all_tasks(self, project: int) -> None:
        self.browser.get(f"{self.url}/projects/{project}/data")
        self.press("Label All Tasks")

    def wait_for_task(self, other_than: str = "") -> str:
        """Address of the task's image once it is displayed and the classes are offered."""
        found = self.wait.until(lambda _: self._shown(other_than))
        assert found
        return found

    def _shown(self, other_than: str) -> str | None:
        script = (
            "return [...document.images].filter(i => i.naturalWidth > 0 && i.src.startsWith('blob:')).map(i => i.src)"
        )
        images = [src for src in self.browser.execute_script(script) if src != other_than]
        return images[0] if images and len(self.choices()) == len(CLASSES) else None

    def image(self) -> dict[str, float]:
        """Size in the file and on the screen."""
        script = """const i = [...document.images].find(i => i.src.startsWith('blob:')), r = i.getBoundingClientRect();
            return {natural: i.naturalWidth, width: r.width, bottom: r.bottom, window: window.innerHeight}"""
        return dict(self.browser.execute_script(script))

    def choices(self) -> list[WebElement]:
        boxes = self.browser.find_elements(By.CSS_SELECTOR, "input.ant-checkbox-input")
        return [box for box in boxes if (box.get_attribute("name") or "").replace("\u2060", "") in CLASSES]

    def chosen(self) -> list[str]:
        return [(box.get_attribute("name") or "").replace("\u2060", "") for box in self.choices() if box.is_selected()]

    def choose(self, number: int) -> None:
        self.choices()[number].find_element(By.XPATH, "./ancestor::label").click()

    def press(self, text: str) -> None:
        """Click a button once it is there and nothing (a message that fades) lies above it."""
        self.wait.until(lambda _: self._pressed(text))

    def _pressed(self, text: str) -> bool:
        for button in self.browser.find_elements(By.TAG_NAME, "button"):
            if button.text == text and button.is_enabled():
                button.click()
                return True
        return False

    def asked_elsewhere(self) -> list[str]:
        """Addresses on other servers that this page loaded something from."""
        loaded = self.browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
        return [each for each in loaded if not each.startswith((self.url, "blob:", "data:"))]

    def keep(self, folder: Path, name: str) -> None:
        self.browser.save_screenshot(str(folder / name))


@pytest.fixture
def page(browser: webdriver.Chrome, real: RealLabelStudio, tool: LabelStudio) -> Page:
    page = Page(browser, real.url)
    page.log_in(real.account.email, real.account.password)
    page.label_all_tasks(int(tool.address.split("/projects/")[1].split("/")[0]))
    return page


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("GLEANER_TEST_OUTPUT") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_an_annotator_sees_the_image_and_the_suggestion_and_what_is_clicked_arrives(
    page: Page, tool: LabelStudio, output: Path
) -> None:
    first = page.wait_for_task()
    shown = page.image()
    page.keep(output, "label_studio_active.png")
    assert shown["natural"] == 8
    assert shown["width"] > 200, "eight pixels are magnified"
    assert shown["bottom"] < shown["window"], "classes and image fit into the window"
    assert page.chosen() == ["zero"], "the suggestion is chosen already"
    page.press("Submit")

    second = page.wait_for_task(other_than=first)
    page.keep(output, "label_studio_control.png")
    assert page.chosen() == [], "nothing is suggested for an item of the control arm"
    page.choose(1)
    page.press("Submit")

    third = page.wait_for_task(other_than=second)
    assert page.chosen() == [], "nothing is suggested for an item of the holdout"
    page.press("Skip")

    page.wait_for_task(other_than=third)
    assert page.chosen() == ["שלוש"]
    page.choose(2)
    page.press("Submit")
    page.wait.until(lambda _: len(events_of(tool)) == len(ARMS))

    assert page.asked_elsewhere() == []
    answers = [tool.interpret(event.payload) for event in events_of(tool)]
    assert [(a.kind, a.label, a.accepted) for a in answers] == [
        ("label", "zero", True),
        ("label", CLASSES[1], None),
        ("skip", "", None),
        ("label", "$two", False),
    ]
    assert all(_timed(answer) for answer in answers)


def _timed(answer: Answer) -> bool:
    return answer.seconds is not None and 0 < answer.seconds < 600
