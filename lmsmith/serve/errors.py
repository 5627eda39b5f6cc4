"""Errors that a client sees, in OpenAI's form: {"error": {message, type, param, code}}."""

from __future__ import annotations

from typing import Any

from lmsmith.errors import ConfigError, LmsmithError, UsageError


class ApiError(Exception):
    """An error with an HTTP status. `param`: the field at fault; `code`: a short name."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = headers or {}

    @property
    def kind(self) -> str:
        if self.status == 429:
            return "rate_limit_error"
        return "server_error" if self.status >= 500 else "invalid_request_error"

    def body(self) -> dict[str, Any]:
        """The JSON object of the response."""
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }


def bad(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A 400: the request is wrong."""
    return ApiError(400, message, param=param, code=code)


def busy(message: str, seconds: int = 1) -> ApiError:
    """A 429 with Retry-After."""
    return ApiError(
        429, message, code="rate_limit_exceeded", headers={"retry-after": str(max(1, seconds))}
    )


def of(error: Exception) -> ApiError:
    """The API's form of any exception. What is not the client's fault shows no detail."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, UsageError | ConfigError):
        return bad(str(error))
    if isinstance(error, LmsmithError):
        return ApiError(500, str(error), code="model_error")
    return ApiError(500, "the server failed; its log has the reason.", code="internal_error")
