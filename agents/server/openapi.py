"""What the server's description (OpenAPI) says of its routes: they read their bodies themselves, to bound them."""

from __future__ import annotations

from typing import Any

import pydantic
from fastapi import FastAPI

from agents.server.wire import ChatCompletionRequest, FeedbackRequest

ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
STATUSES = {
    400: "The request makes no sense, or no expert can do what it needs",
    401: "No valid key",
    404: "No such model or decision",
    408: "The body did not come in time",
    413: "The body is too large",
    409: "The files are broken, so that nothing has changed",
    429: "Too many requests, or the key's money does not pay for this one (code insufficient_quota)",
    502: "No expert answered",
    503: "Nothing can be answered now",
    504: "No expert answered in time",
}


SECURITY: dict[str, Any] = {"key": {"type": "http", "scheme": "bearer"}, "admin": {"type": "http", "scheme": "basic"}}


def tell_how_to_log_in(app: FastAPI) -> None:
    """Adds the kinds of keys, to which routes refer, to the description."""
    described = app.openapi

    def openapi() -> dict[str, Any]:
        whole = described()
        whole.setdefault("components", {})["securitySchemes"] = SECURITY
        return whole

    app.openapi = openapi  # type: ignore[method-assign]


def _errors(*statuses: int) -> dict[int | str, Any]:
    content = {"application/json": {"schema": ERROR}}
    return {status: {"description": STATUSES[status], "content": content} for status in statuses}


def _get(*statuses: int, security: str | None = None, **extra: Any) -> dict[str, Any]:
    """What is said of a route without a body that may fail with these statuses."""
    extra |= {} if security is None else {"security": [{security: []}]}
    return {"openapi_extra": extra, "responses": _errors(*statuses)}


def _route(body: type[pydantic.BaseModel], answers: dict[str, Any]) -> dict[str, Any]:
    schema = body.model_json_schema(ref_template="#/components/schemas/{model}")
    definitions = schema.pop("$defs", {})
    inlined = _inline(schema, definitions)
    return {
        "openapi_extra": {
            "requestBody": {"required": True, "content": {"application/json": {"schema": inlined}}},
            "security": [{"key": []}],
        },
        "responses": {
            200: {"description": "Successful response", "content": answers},
            **_errors(*(status for status in STATUSES if status != 409)),
        },
        "response_model": None,
    }


def _inline(schema: Any, definitions: dict[str, Any]) -> Any:
    """A schema with its references replaced by what they mean."""
    if isinstance(schema, list):
        return [_inline(one, definitions) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inline(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {name: _inline(one, definitions) for name, one in schema.items()}


_OBJECT: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
CHAT = _route(ChatCompletionRequest, {**_OBJECT, "text/event-stream": {"schema": {"type": "string"}}})
ROUTE = _route(ChatCompletionRequest, _OBJECT)
FEEDBACK = _route(FeedbackRequest, _OBJECT)
MODELS = _get(401, 503, security="key")
_NAME = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
MODEL = _get(401, 404, 503, security="key", parameters=[_NAME])
READY: dict[str, Any] = {"responses": {503: {"description": "Requests cannot be answered now", "content": _OBJECT}}}
RELOAD = _get(401, 409, 503, security="admin")
ADMIN = _get(400, 401, 503, security="admin")
