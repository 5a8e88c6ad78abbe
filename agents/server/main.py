"""What uvicorn's workers import: the application with the settings that the command handed on."""

from __future__ import annotations

from fastapi import FastAPI

from agents.server import logs, tracing
from agents.server.app import create_app
from agents.server.config import ServerConfig


def app() -> FastAPI:
    logs.set_up()
    tracing.set_up()
    return create_app(ServerConfig.handed_on())
