"""What uvicorn's workers import: the application with the settings that the command handed on."""

from __future__ import annotations

import multiprocessing
import signal

from fastapi import FastAPI

from agents.server import logs, tracing
from agents.server.app import create_app
from agents.server.config import ServerConfig


def app() -> FastAPI:
    if multiprocessing.parent_process() is not None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the command's process tells its workers
    logs.set_up()
    tracing.set_up()
    return create_app(ServerConfig.handed_on())
