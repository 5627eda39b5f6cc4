"""The routes of the server, as a Starlette application."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from lmsmith.serve import chat, completions, page
from lmsmith.serve.answers import Disconnected
from lmsmith.serve.errors import ApiError, bad, busy
from lmsmith.serve.fields import Fields, parse_body
from lmsmith.serve.guard import Guard
from lmsmith.serve.json_response import JsonResponse, error_response
from lmsmith.serve.metrics import Metrics
from lmsmith.serve.models import Models
from lmsmith.serve.sampling import Limits
from lmsmith.serve.scheduler import Scheduler

MOST_BODIES = 64 << 20
"""Bytes of all bodies that are being read together."""

CLOSE = {"connection": "close"}

REFUSED = (
    *("embeddings", "images/generations", "images/edits", "audio/speech", "moderations"),
    *("audio/transcriptions", "responses", "files", "batches", "fine_tuning/jobs", "assistants"),
)


@dataclass
class Serving:
    """What the routes use."""

    models: Models
    scheduler: Scheduler
    metrics: Metrics
    limits: Limits = field(default_factory=Limits)
    api_key: str | None = None
    allowed_hosts: Iterable[str] = ()
    log_prompts: bool = False
    stopping: bool = False  # set on SIGTERM: /health says so
    n_body_bytes: int = 0


def make_app(serving: Serving) -> Starlette:
    """The application. The scheduler must be started."""
    routes = Routes(serving)
    paths = [
        Route("/", routes.page, methods=["GET"]),
        Route("/health", routes.health, methods=["GET"]),
        Route("/metrics", routes.metrics, methods=["GET"]),
        Route("/v1/models", routes.list_models, methods=["GET"]),
        Route("/v1/models/{name}", routes.one_model, methods=["GET"]),
        Route("/v1/completions", routes.completions, methods=["POST"]),
        Route("/v1/chat/completions", routes.chat, methods=["POST"]),
        *(Route(f"/v1/{name}", routes.refused, methods=["GET", "POST"]) for name in REFUSED),
    ]
    guard = Middleware(
        Guard,
        metrics=serving.metrics,
        routes=[path.path for path in paths],
        api_key=serving.api_key,
        allowed_hosts=serving.allowed_hosts,
    )
    app = Starlette(routes=paths, middleware=[guard], exception_handlers={HTTPException: _http})
    app.router.redirect_slashes = False
    return app


class Routes:
    """One method per route."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def page(self, request: Request) -> Response:
        return page.response()

    async def health(self, request: Request) -> Response:
        if self._serving.stopping:
            return JsonResponse({"status": "stopping"}, 503)
        return JsonResponse({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        scheduler = self._serving.scheduler
        gauges = {
            "sequences_running": scheduler.n_running,
            "sequences_waiting": scheduler.n_waiting,
            "models_loaded": self._serving.models.n_loaded,
            "start_time_seconds": self._serving.metrics.started,
        }
        text = self._serving.metrics.text(gauges)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def list_models(self, request: Request) -> Response:
        entries = [served.as_json() for served in self._serving.models.all.values()]
        return JsonResponse({"object": "list", "data": entries})

    async def one_model(self, request: Request) -> Response:
        return JsonResponse(self._serving.models.known(request.path_params["name"]).as_json())

    async def refused(self, request: Request) -> Response:
        raise completions.refuse(request.url.path)

    async def completions(self, request: Request) -> Response:
        fields = await self._fields(request)
        serving = self._serving
        async with serving.models.using(self._model(fields)) as served:
            return await completions.answer(
                request,
                fields,
                served.name,
                served.writer,
                serving.scheduler,
                serving.limits,
                _client(request),
            )

    async def chat(self, request: Request) -> Response:
        fields = await self._fields(request)
        serving = self._serving
        async with serving.models.using(self._model(fields)) as served:
            return await chat.answer(
                request, fields, served, serving.scheduler, serving.limits, _client(request)
            )

    def _model(self, fields: Fields) -> str:
        name = fields.text("model")
        if not name:
            raise bad(
                f"model is missing: expected one of {', '.join(self._serving.models.names)}.",
                "model",
            )
        return name

    async def _fields(self, request: Request) -> Fields:
        """The fields of the body. Raises ApiError."""
        if self._serving.stopping:
            raise ApiError(503, "the server is stopping.", code="stopping")
        try:
            async with asyncio.timeout(self._serving.limits.body_seconds):
                body = await self._body(request)
        except TimeoutError:
            raise ApiError(
                408, "the body took too long to arrive.", code="timeout", headers=CLOSE
            ) from None
        except ClientDisconnect:
            raise Disconnected from None
        content = parse_body(body)
        if self._serving.log_prompts:
            page.log.info("body %s", ascii(body.decode("utf-8")))
        fields = Fields(content)
        fields.n_bytes = len(body)
        return fields

    async def _body(self, request: Request) -> bytes:
        serving, most = self._serving, self._serving.limits.max_body
        length = request.headers.get("content-length", "0")
        if length.isdecimal() and int(length) > most:
            raise _too_large(most)
        parts: list[bytes] = []
        n = 0
        try:
            async for part in request.stream():
                n += len(part)
                serving.n_body_bytes += len(part)
                if n > most:
                    raise _too_large(most)
                if serving.n_body_bytes > MOST_BODIES:
                    raise busy("many large requests arrive at once: try again later.")
                parts.append(part)
        finally:
            serving.n_body_bytes -= n
        return b"".join(parts)


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"the body has more than {most:,} bytes.", code="body_too_large")


def _client(request: Request) -> str:
    return request.client.host if request.client else ""


async def _http(request: Request, error: Any) -> Response:
    """Starlette's own errors, such as an unknown path, in OpenAI's form."""
    message = {
        404: "there is no such path. This server has /v1/models, /v1/completions and "
        "/v1/chat/completions.",
        405: f"the method {request.method[:20]!a} is not allowed here.",
    }.get(error.status_code, str(error.detail))
    headers = dict(error.headers or {})
    return error_response(ApiError(error.status_code, message, headers=headers))
