"""Chromium of the distribution, for the tests of what people look at in a browser."""

import contextlib
import importlib
import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if os.environ.get("CI"):  # a browser test that is skipped tests nothing: there it fails
    playwright = importlib.import_module("playwright.sync_api")
else:
    if not CHROMIUM:
        pytest.skip("needs Chromium, such as apt-get install chromium gives", allow_module_level=True)
    playwright = pytest.importorskip("playwright.sync_api")

# A camera that is none, and no sandbox, which root has not.
SWITCHES = ["--no-sandbox", "--disable-gpu", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]


@contextlib.contextmanager
def launched() -> Iterator[Any]:
    """A browser without a window."""
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=SWITCHES)
        yield browser
        browser.close()
