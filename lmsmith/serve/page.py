"""The page at /: one HTML document put together from the files in page/.

It makes no request to any other server. Its content security policy allows only its own script and
style, by hash, so that nothing a model writes can run.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import logging
from importlib.resources import files

from starlette.responses import HTMLResponse, Response

log = logging.getLogger(__name__)

SCRIPTS = ("markdown.js", "api.js", "chat.js", "pad.js", "main.js")


@functools.cache
def document() -> tuple[str, str]:
    """The document, and its content security policy."""
    folder = files("lmsmith.serve") / "page"
    style = (folder / "style.css").read_text(encoding="utf-8")
    parts = [(folder / name).read_text(encoding="utf-8") for name in SCRIPTS]
    script = "'use strict';\n(() => {\n" + "\n".join(parts) + "\n})();\n"
    html = (folder / "index.html").read_text(encoding="utf-8")
    html = html.replace("/*style*/", style).replace("/*script*/", script)
    policy = (
        "default-src 'none'; connect-src 'self'; img-src data:; base-uri 'none'; "
        f"form-action 'none'; frame-ancestors 'none'; script-src {_hash(script)}; "
        f"style-src {_hash(style)}"
    )
    return html, policy


def response() -> Response:
    html, policy = document()
    return HTMLResponse(
        html, headers={"content-security-policy": policy, "cache-control": "no-cache"}
    )


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
