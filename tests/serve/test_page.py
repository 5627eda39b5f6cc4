"""The page in a real browser: headless Chromium, driven by Selenium."""

import json
import re
from typing import Any

import pytest

pytest.importorskip("starlette", reason="lmsmith[serve] is not installed")
pytest.importorskip("uvicorn", reason="lmsmith[serve] is not installed")

from driving import put, text, until

from lmsmith.api import LM
from lmsmith.serve import page


def test_the_page_is_one_document_without_external_requests() -> None:
    html, policy = page.document()
    assert not re.findall(r"""(?:src|href|action)\s*=\s*["'](?!data:|#)""", html)
    assert "@import" not in html
    assert "url(" not in html
    for unsafe in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert unsafe not in html, unsafe
    assert "'unsafe-inline'" not in policy
    assert html.count("<script") == html.count("</script>") == 1


@pytest.mark.slow
def test_the_text_pad(opened: Any) -> None:
    assert opened.find_element("id", "pad").is_displayed()  # a base model opens in the pad
    put(opened, "prompt", "The cat")
    put(opened, "length", "12")
    put(opened, "seed", "1")
    opened.find_element("id", "continue").click()
    tokens = lambda: opened.find_elements("css selector", "#tokens span")  # noqa: E731
    until(lambda: text(opened, "status") == "Complete")
    assert 1 <= len(tokens()) <= 12
    before = [each.text for each in tokens()]
    tokens()[1].click()
    choices = opened.find_elements("css selector", "#choices button")
    assert len(choices) >= 3
    assert "%" in choices[0].text
    label = choices[0].get_attribute("textContent")
    choices[0].click()
    until(lambda: text(opened, "status") == "Complete" and len(tokens()) > 2)
    assert tokens()[0].text == before[0]
    chosen = tokens()[1].get_attribute("textContent").replace("\n", "↵").replace(" ", "␣")
    assert chosen == label.rsplit(" ", 2)[0].replace(" ", "␣")
    assert opened.switch_to.active_element == tokens()[1]  # the focus stays where the user is
    assert text(opened, "spoken") == "".join(
        each.get_attribute("textContent") for each in tokens()[2:]
    )


@pytest.mark.slow
def test_the_pointer_may_cross_tokens_on_its_way_to_an_alternative(opened: Any) -> None:
    from selenium.webdriver import ActionChains

    put(opened, "prompt", "The cat")
    put(opened, "length", "8")
    put(opened, "seed", "1")
    opened.find_element("id", "continue").click()
    until(lambda: text(opened, "status") == "Complete")
    tokens = opened.find_elements("css selector", "#tokens span")
    said = lambda: opened.find_element("css selector", "#choices span").text  # noqa: E731
    ActionChains(opened).move_to_element(tokens[3]).perform()
    hovered = said()
    ActionChains(opened).move_to_element(tokens[4]).perform()
    assert said() != hovered
    tokens[4].click()
    clicked = said()
    ActionChains(opened).move_to_element(tokens[3]).perform()
    assert said() == clicked


@pytest.mark.slow
def test_the_keyboard_alone(opened: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    put(opened, "length", "5")
    put(opened, "seed", "1")
    focus = lambda: opened.switch_to.active_element  # noqa: E731
    opened.execute_script("document.getElementById('continue').focus()")
    focus().send_keys(Keys.ENTER)
    until(lambda: text(opened, "status") == "Complete")
    assert focus().get_attribute("id") == "continue"  # the stop button had it meanwhile
    opened.execute_script("document.querySelector('#tokens span').focus()")
    focus().send_keys(Keys.ARROW_RIGHT)
    focus().send_keys(Keys.ENTER)
    assert focus().find_element("xpath", "..").get_attribute("id") == "choices"
    focus().send_keys(Keys.ENTER)
    until(lambda: text(opened, "status") == "Complete")
    assert focus().get_attribute("role") == "button"
    put(opened, "length", "50000")  # more than the model's context: it writes until it is stopped
    opened.execute_script("document.getElementById('continue').focus()")
    focus().send_keys(Keys.ENTER)
    until(lambda: focus().get_attribute("id") == "pad-stop")
    focus().send_keys(Keys.ESCAPE)
    until(lambda: text(opened, "status") == "Stopped")
    assert focus().get_attribute("id") == "continue"


@pytest.mark.slow
def test_a_chat(opened: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    opened.find_element("id", "view-chat").click()
    put(opened, "length", "30")
    box = opened.find_element("id", "message")
    box.send_keys("Hello <b>you</b>")
    box.send_keys(Keys.ENTER)
    until(lambda: text(opened, "status") == "Complete")
    articles = opened.find_elements("css selector", "#log article")
    assert [each.get_attribute("class") for each in articles] == ["user", "assistant"]
    assert "Hello <b>you</b>" in articles[0].text
    assert opened.execute_script("return document.activeElement.id") == "message"
    content = articles[1].find_element("css selector", ".content")
    assert text(opened, "spoken") == content.get_attribute("textContent")
    assert opened.find_element("id", "log").get_attribute("aria-live") == "off"
    opened.find_element("css selector", "article.user .actions button:nth-child(2)").click()
    opened.find_element("css selector", "article.user textarea").send_keys(" again")
    opened.find_element("css selector", "article.user .actions button").click()
    until(lambda: text(opened, "status") == "Complete")
    opened.find_element("css selector", "article.assistant .actions button:nth-child(2)").click()
    until(lambda: text(opened, "status") == "Complete")
    opened.refresh()
    until(lambda: len(opened.find_elements("css selector", "#log article")) == 2)
    until(lambda: opened.find_element("id", "chat").is_displayed())  # the view is kept, too
    assert "again" in opened.find_element("css selector", "article.user .content").text


EVIL = """# Title
<img src=x onerror=alert(1)> <script>window.broken=1</script> **bold** `x<y`
[bad](javascript:alert(1)) [good](https://example.org/)

- one
- two

```html
<b>code</b>
```
> quote"""


@pytest.mark.slow
def test_what_a_model_writes_is_never_html(opened: Any) -> None:
    talk = {"id": "1", "title": "x", "messages": [{"role": "assistant", "content": EVIL}]}
    opened.execute_script(
        "localStorage.setItem('lmsmith.conversations', JSON.stringify([arguments[0]]))", talk
    )
    opened.refresh()

    def shown() -> bool:  # the page chooses a view when it has the list of models
        opened.find_element("id", "view-chat").click()
        titles = opened.find_elements("css selector", "#log .content h3")
        return bool(titles) and titles[0].is_displayed()

    until(lambda: opened.find_elements("css selector", "#model option"))
    until(shown)
    content = opened.find_element("css selector", "#log .content")
    found = {
        name: len(content.find_elements("css selector", name))
        for name in ("img", "script", "b", "strong", "code", "li", "blockquote", "pre", "a")
    }
    assert found == {
        **{"img": 0, "script": 0, "b": 0, "strong": 1, "code": 2},
        **{"li": 2, "blockquote": 1, "pre": 1, "a": 1},
    }
    assert "<img src=x" in content.text
    assert opened.execute_script("return window.broken") is None


@pytest.mark.slow
def test_labels_phone_width_and_a_clean_console(opened: Any) -> None:
    unlabelled = opened.execute_script(
        "return [...document.querySelectorAll('input,textarea,select,button')].filter("
        "e => !(e.labels?.length || e.textContent.trim() || e.ariaLabel)).map(e => e.outerHTML)"
    )
    assert unlabelled == []
    phone = {"width": 360, "height": 700, "deviceScaleFactor": 2, "mobile": True}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    for view in ("view-chat", "view-pad"):
        opened.find_element("id", view).click()
        wide = opened.execute_script("return document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0, view
    opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    severe = [entry for entry in opened.get_log("browser") if entry["level"] == "SEVERE"]
    assert severe == []


@pytest.mark.slow
def test_a_stopped_answer_and_the_exported_conversations(opened: Any) -> None:
    opened.execute_script(  # a model without a context length writes for as long as it is asked to
        "const e = document.getElementById('model'); e.value = 'ngram';"
        "e.dispatchEvent(new Event('change'))"
    )
    opened.find_element("id", "view-chat").click()
    put(opened, "length", "2000")
    put(opened, "message", "Hello")
    opened.execute_script(  # as soon as a part of the answer is there
        "const timer = setInterval(() => {"
        "if (!document.querySelector('article.assistant .content')?.textContent) return;"
        "clearInterval(timer); document.getElementById('stop').click(); }, 1);"
        "document.getElementById('send').click()"
    )
    until(lambda: text(opened, "status") in ("Stopped", "Complete"))
    assert text(opened, "status") == "Stopped"
    opened.execute_script(
        "URL.createObjectURL = blob => { blob.text().then(t => window.exported = t); return '#'; };"
        "document.getElementById('export').click()"
    )
    until(lambda: opened.execute_script("return window.exported"))
    (talk,) = json.loads(opened.execute_script("return window.exported"))["conversations"]
    assert talk["messages"][0] == {"role": "user", "content": "Hello"}


@pytest.mark.slow
def test_temperature_zero_writes_what_generate_writes(opened: Any, lm: LM) -> None:
    put(opened, "prompt", "The cat")
    put(opened, "length", "12")
    put(opened, "temperature", "0")
    opened.find_element("id", "continue").click()
    until(lambda: text(opened, "status") == "Complete")
    expected = lm.generate("The cat", max_tokens=12, temperature=0)
    assert text(opened, "tokens") == expected


CONTRASTS = """
const light = color => color.match(/[\\d.]+/g).slice(0, 3).map(part => part / 255)
  .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
  .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
const behind = e => {
  while (e && /, 0\\)$|transparent/.test(getComputedStyle(e).backgroundColor)) e = e.parentElement;
  return e ? getComputedStyle(e).backgroundColor : 'rgb(255, 255, 255)';
};
return [...document.querySelectorAll('h1, label, button, .hint, textarea, select')]
  .filter(e => e.offsetParent).map(e => {
    const [a, b] = [light(getComputedStyle(e).color), light(behind(e))].sort((x, y) => y - x);
    return [(a + 0.05) / (b + 0.05), light(behind(e)), e.outerHTML.slice(0, 80)];
  });
"""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_both_colour_schemes(opened: Any, scheme: str) -> None:
    """The contrast of WCAG 2.2, level AA: 4.5."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    found = opened.execute_script(CONTRASTS)
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert len(found) > 10
    assert [each for each in found if each[0] < 4.5] == []
    assert all((behind > 0.5) == (scheme == "light") for _, behind, e in found if "<label" in e)
