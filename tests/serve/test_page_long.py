"""Long answers on the page, in a real browser: what a chunk costs does not grow with the answer."""

import random
from importlib.resources import files
from typing import Any

import pytest

pytest.importorskip("starlette", reason="lmsmith[serve] is not installed")
pytest.importorskip("uvicorn", reason="lmsmith[serve] is not installed")

from driving import put, text, until

from lmsmith.api import LM

# Stands in for the server: `window.answer` gives the texts of the chunks. `window.sent` is the
# body, and `window.added` the number of nodes that each list has received, by the page's drawing.
FAKE = """
const real = window.fetch;
window.sent = null;
window.added = {log: 0, tokens: 0};
for (const id of Object.keys(window.added)) {
  new MutationObserver(records => {
    for (const each of records) for (const node of each.addedNodes) {
      if (node.nodeType === 1) window.added[id] += 1 + node.querySelectorAll('*').length;
    }
  }).observe(document.getElementById(id), {childList: true, subtree: true});
}
window.fetch = async (path, options) => {
  if (options?.method !== 'POST') return real(path, options);
  window.sent = JSON.parse(options.body);
  const parts = window.answer, encoder = new TextEncoder();
  let i = 0, offset = 0;
  const chunk = part => {
    if (path.includes('chat')) return {choices: [{delta: {content: part}}]};
    const tops = {[part]: -0.5, other: -1};
    const logprobs = {tokens: [part], token_logprobs: [-0.5], top_logprobs: [tops], text_offset: [offset]};
    offset += Array.from(part).length;
    return {choices: [{text: part, logprobs}]};
  };
  return new Response(new ReadableStream({async pull(stream) {
    if (i % 20 === 0) await new Promise(done => setTimeout(done));
    const event = i < parts.length ? JSON.stringify(chunk(parts[i++])) : '[DONE]';
    stream.enqueue(encoder.encode(`data: ${event}\\n\\n`));
    if (event === '[DONE]') stream.close();
  }}));
};
"""


def ask(browser: Any, view: str, answer: list[str]) -> None:
    """Sends a message, or continues a text; waits for the answer, which FAKE gives."""
    browser.execute_script(FAKE + "window.answer = arguments[0]", answer)
    browser.find_element("id", f"view-{view}").click()
    put(browser, "message", "Hello")
    browser.find_element("id", "send" if view == "chat" else "continue").click()
    until(lambda: text(browser, "status") in ("Complete", "Failed"), 60)
    assert text(browser, "problem") == ""


def markdown(browser: Any, script: str, *arguments: Any) -> Any:
    """What a script with the page's markdown returns."""
    source = (files("lmsmith.serve") / "page" / "markdown.js").read_text(encoding="utf-8")
    html = (
        "const html = (...parts) => { const root = document.createElement('div');"
        "const made = new Markdown(root); parts.forEach(each => made.write(each));"
        "return root.innerHTML; };"
    )
    return browser.execute_script(source + html + script, *arguments)


STORY = """
Some *text* with `code` and **bold
words**, and ``a`b``.
# A title
1. one
2. **two**
- three

> a quote
> of two lines
and after it
```python
if x < 1 and "<b>" in y:

    print("# no title")
```
~~~
never closed
- no item
"""
STORY_HTML = (
    "<p>Some <em>text</em> with <code>code</code> and **bold<br>words**, and <code>a`b</code>.</p>"
    "<h3>A title</h3>"
    '<ol start="1"><li>one</li><li><strong>two</strong></li><li>three</li></ol>'
    "<blockquote>a quote\nof two lines</blockquote>"
    "<p>and after it</p>"
    '<pre tabindex="0"><code><span>if x &lt; 1 and "&lt;b&gt;" in y:\n</span><span>\n</span>'
    '<span>    print("# no title")\n</span></code></pre>'
    '<pre tabindex="0"><code><span>never closed\n</span><span>- no item\n</span></code></pre>'
)


@pytest.mark.slow
def test_markdown_that_comes_in_parts_equals_markdown_at_once(opened: Any) -> None:
    assert markdown(opened, "return html(arguments[0])", STORY) == STORY_HTML
    draw = random.Random(1)
    pieces = ["\n", "\n\n", "- ", "1. ", "# ", "> ", "`", "```", "~~~", "*", "**", "a", " ", "\r\n"]
    texts = [STORY, *("".join(draw.choices(pieces, k=60)) for _ in range(60))]
    cut = "const [texts, sizes] = arguments; return texts.map(text => { const parts = [];"
    cut += "for (let at = 0, i = 0; at < text.length; at += sizes[i++ % sizes.length])"
    cut += "  parts.push(text.slice(at, at + sizes[i % sizes.length]));"
    cut += "return [html(text), html(...parts)]; })"
    for sizes in ([1], [2, 5, 3], [7]):
        for at_once, in_parts in markdown(opened, cut, texts, sizes):
            assert at_once == in_parts


@pytest.mark.slow
def test_lines_that_end_with_a_carriage_return(opened: Any) -> None:
    """A list of such lines once made the page hang."""
    found = markdown(opened, "return html(arguments[0])", "- a\r\n- b\r\n\r\n# c\r\n")
    assert found == "<ul><li>a</li><li>b</li></ul><h3>c</h3>"


@pytest.mark.slow
@pytest.mark.parametrize("n", [500, 2000])
def test_a_growing_answer_is_not_drawn_again(opened: Any, n: int) -> None:
    """Paragraphs, lists and code: each line adds some elements, whatever is above it."""
    part = ["A ", "**word**", ".", "\n\n", "- an", " item", "\n\n", "```\n", "x <b>\n", "```\n\n"]
    ask(opened, "chat", part * (n // len(part)))
    found = opened.execute_script(
        "return ['p', 'li', 'pre', 'b'].map(e => document.querySelectorAll(`#log ${e}`).length)"
    )
    assert found == [n // 10 + 1, n // 10, n // 10, 0]  # and the paragraph that was sent
    added = opened.execute_script("return window.added.log")
    assert added < 5 * n  # drawn while it grows, and once at the end


@pytest.mark.slow
def test_a_growing_continuation_in_the_pad(opened: Any) -> None:
    parts = ["Once", " upon", " 🎈", " a time", ".\n"] * 400
    ask(opened, "pad", parts)
    assert text(opened, "tokens") == text(opened, "spoken") == "".join(parts)
    assert opened.execute_script("return window.added.tokens") < 3 * len(parts)
    opened.execute_script(
        "window.answer = ['!']; document.querySelectorAll('#tokens span')[8].click()"
    )
    opened.find_element("css selector", "#choices button").click()
    until(lambda: text(opened, "tokens").endswith("!"))
    prompt = opened.execute_script("return window.sent.prompt")
    assert prompt == "Once upon a time" + "".join(parts[:8]) + "other"  # after the balloon


@pytest.mark.slow
def test_the_length_is_that_of_the_field(opened: Any, lm: LM) -> None:
    for value, expected in (("7", 7), ("100000", 100000), ("", 200)):
        put(opened, "length", value)
        for view in ("chat", "pad"):
            ask(opened, view, ["x"])
            assert opened.execute_script("return window.sent.max_tokens") == expected
    opened.refresh()
    until(lambda: opened.find_elements("css selector", "#model option"))
    put(opened, "prompt", "The cat")
    put(opened, "temperature", "0")
    opened.find_element("id", "view-pad").click()
    for n in (1, 9):
        put(opened, "length", str(n))
        opened.find_element("id", "undo").click()
        opened.find_element("id", "continue").click()
        until(lambda: text(opened, "status") == "Complete" and text(opened, "tokens") != "")
        assert text(opened, "tokens") == lm.generate("The cat", max_tokens=n, temperature=0)
    for value in ("0", "-3", "1.5"):  # the server says what it expects
        put(opened, "length", value)
        opened.find_element("id", "continue").click()
        until(lambda: text(opened, "status") == "Failed")
        assert "max_tokens" in text(opened, "problem")
        opened.execute_script("document.getElementById('status').textContent = ''")
