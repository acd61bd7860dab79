"""The page as a person uses it: by what is written on it."""

from __future__ import annotations

import base64
import io
import re
import time

import numpy as np
from PIL import Image
from playwright.sync_api import FilePayload, FrameLocator, Locator, Page, expect

#: What the demo checkpoints are to be asked with (demo/MODEL_CARD.md), small enough for a second.
SMALL: dict[str, float] = {"Width": 64, "Height": 64, "CFG scale": 3, "Seed (-1: random)": 3}

#: Where the page hears what its events came to, and how long what it asks at first may take.
STREAM, LOAD_SECONDS = "/gradio_api/queue/data", 90
#: A drop that the browser's own code sends; Playwright has none.
DROP = """({selector, base64}) => {
  const bytes = Uint8Array.from(atob(base64), (one) => one.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], "dropped.png", {type: "image/png"}));
  const target = document.querySelector(selector);
  for (const name of ["dragenter", "dragover", "drop"])
    target.dispatchEvent(new DragEvent(name, {dataTransfer: data, bubbles: true, cancelable: true}));
}"""


class WebUI:
    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.kind = "txt2img"

    def opened(self) -> WebUI:
        """Go to the page, and wait until it has what a loaded page asks for: it fills in fields."""
        told: list[str] = []
        for end in ("requestfinished", "requestfailed"):  # the page hangs up once it was told all
            self.page.on(end, lambda request: told.append(request.url) if STREAM in request.url else None)
        self.page.goto(self.url)
        expect(self.page.get_by_role("tab", name="txt2img")).to_be_visible()
        deadline = time.monotonic() + LOAD_SECONDS
        while not told and time.monotonic() < deadline:
            self.page.wait_for_timeout(50)
        assert told, f"{self.url} was not loaded within {LOAD_SECONDS} s"
        self.kind = "txt2img"
        return self

    # -- the form ---------------------------------------------------------------------------------

    @property
    def tab(self) -> Locator:
        """The panel that is shown."""
        return self.page.locator(f"#tab_{self.kind}")

    def go(self, title: str, panel: str) -> Locator:
        self.page.get_by_role("tab", name=title, exact=True).click()
        self.kind = panel
        expect(self.tab).to_be_visible()
        return self.tab

    def set(self, label: str, value: float | str) -> None:
        """Type into a field; of a slider, into its number."""
        field = self.field(label)
        field.fill(str(value))
        field.blur()

    def field(self, label: str) -> Locator:
        text = self.tab.get_by_role("textbox", name=label, exact=True)
        number = self.tab.get_by_role("spinbutton", name=label, exact=True)
        slider = self.tab.get_by_role("spinbutton", name=f"number input for {label}", exact=True)
        return text.or_(number).or_(slider).first

    def choose(self, label: str, option: str | re.Pattern[str], within: Locator | None = None) -> None:
        field = (within or self.tab).get_by_role("combobox", name=label, exact=True)
        field.click()
        self.page.get_by_role("option", name=option, exact=True).click()
        field.blur()

    def open(self, title: str) -> None:
        self.tab.get_by_role("button", name=title).first.click()

    def write(self, prompt: str, **fields: float) -> None:
        self.set("Prompt", prompt)
        for label, value in {**SMALL, **fields}.items():
            self.set(label, value)

    def upload(self, field: str, picture: bytes) -> None:
        """Give a picture to the field with this id, as a person picks a file."""
        file: FilePayload = {"name": "picture.png", "mimeType": "image/png", "buffer": picture}
        self.tab.locator(f"#{field} input[type=file]").first.set_input_files(file)

    def drop(self, field: str, picture: bytes) -> None:
        """Drop a picture onto the field with this id, as a person drags a file."""
        arguments = {"selector": f"#{field} button", "base64": base64.b64encode(picture).decode()}
        self.page.evaluate(DROP, arguments)

    # -- what comes of it ---------------------------------------------------------------------------

    def press(self, name: str) -> None:
        self.tab.get_by_role("button", name=name, exact=True).first.click()

    @property
    def infotext(self) -> Locator:
        return self.tab.locator(f"#{self.kind}_info textarea")

    def generate(self) -> Image.Image:
        """Press Generate, wait until all is over, take the first picture of the gallery."""
        before = self.infotext.input_value()
        self.press("Generate")
        expect(self.infotext).not_to_have_value(before)
        return self.picture()

    @property
    def status(self) -> Locator:
        return self.tab.locator(f"#{self.kind}_status")

    def picture(self, within: str = "") -> Image.Image:
        """The picture that is shown, as the file that a person would save."""
        image = self.page.locator(within or f"#{self.kind}_gallery").locator("img").first
        expect(image).to_be_visible()
        return self.fetched(image)

    def fetched(self, image: Locator) -> Image.Image:
        address = image.evaluate("one => one.src")
        answer = self.page.request.get(address)
        assert answer.ok, f"{address}: {answer.status}"
        opened = Image.open(io.BytesIO(answer.body()))
        opened.load()
        return opened

    def told(self) -> Locator:
        """The message that pops up."""
        return self.page.get_by_test_id("toast-body")

    def frame(self, title: str) -> FrameLocator:
        """What a tab of ours shows."""
        return self.go(title, title.lower()).frame_locator("iframe")


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"), dtype=float)


def difference(one: Image.Image, other: Image.Image) -> float:
    return float(np.abs(pixels(one) - pixels(other)).mean())


def is_drawn(image: Image.Image) -> bool:
    """Whether there is more in it than one colour or noise of the same: it varies over large areas."""
    return float(pixels(image.resize((8, 8), Image.Resampling.BOX)).std()) > 10
