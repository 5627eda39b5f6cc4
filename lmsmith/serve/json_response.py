"""JSON responses, and the ids of answers."""

from __future__ import annotations

import secrets
from typing import Any

from starlette.responses import Response

from lmsmith.serve.errors import ApiError
from lmsmith.strict_json import to_json


class JsonResponse(Response):
    """JSON in UTF-8; numbers that are not finite become null."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return to_json(content, ensure_ascii=False).encode("utf-8")


def new_id(kind: str) -> str:
    """A random id: "cmpl-..."."""
    return f"{kind}-{secrets.token_hex(12)}"


def error_response(error: ApiError) -> JsonResponse:
    return JsonResponse(error.body(), error.status, error.headers)
