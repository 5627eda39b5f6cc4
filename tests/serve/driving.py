"""Helpers for tests that drive a browser with Selenium."""

import time
from typing import Any


def until(seen: Any, seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not seen():
        assert time.monotonic() < end
        time.sleep(0.02)


def text(browser: Any, id: str) -> str:
    return str(browser.find_element("id", id).get_attribute("textContent"))


def put(browser: Any, id: str, value: str) -> None:
    browser.execute_script(
        "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
        "e.dispatchEvent(new Event('input'))",
        id,
        value,
    )
