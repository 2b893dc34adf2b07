"""Questions over HTTP: `POST /ask` streams the answer as server-sent events, `GET /readyz` tells of the hub."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, Field

from llm_hub import Hub, HubError


class Question(BaseModel):
    """What is asked."""

    prompt: str = Field(min_length=1, max_length=20_000)
    system: str | None = None
    max_tokens: int | None = Field(default=None, ge=1, le=4096)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with Hub.from_env() as app.state.hub:
        yield


app = FastAPI(title="A service on llm-hub", lifespan=lifespan)


@app.post("/ask", response_class=EventSourceResponse)
async def ask(question: Question, request: Request) -> AsyncIterator[ServerSentEvent]:
    """Events named `text` with pieces of the answer, then one `done`, or one `error` if it broke off."""
    options: Any = question.model_dump(exclude={"prompt"}, exclude_none=True)
    stream = request.app.state.hub.text().astream(question.prompt, **options)
    try:
        async with aclosing(stream):  # a client that leaves cancels the generation
            async for chunk in stream:
                if chunk.text:
                    yield ServerSentEvent(event="text", data=chunk.text)
    except HubError as error:
        yield ServerSentEvent(event="error", data={"type": type(error).__name__, "message": str(error)})
    else:
        done = {"served_by": str(stream.served_by), "finish_reason": stream.response.finish_reason}
        yield ServerSentEvent(event="done", data=done)


@app.get("/healthz")
async def healthz() -> Response:
    """This process lives; says nothing of backends."""
    return Response("ok", media_type="text/plain")


@app.get("/readyz")
async def readyz(request: Request) -> JSONResponse:
    """The state of the hub; 503 while nothing can serve text."""
    status = await request.app.state.hub.astatus(["text"])
    routes = {
        route.capability: {"backend": route.decision.backend, "model": route.decision.model}
        if route.decision
        else {"error": route.error}
        for route in status.routes
    }
    backends = {one.name: {"ok": one.probe.ok, "detail": one.probe.detail} for one in status.backends}
    body = {"ready": status.ready, "epoch": status.epoch, "routes": routes, "backends": backends}
    return JSONResponse(body, status_code=200 if status.ready else 503)


def main() -> None:
    """Serve on HOST and PORT, by default 127.0.0.1:8080."""
    uvicorn.run(app, host=os.environ.get("HOST", "127.0.0.1"), port=int(os.environ.get("PORT", "8080")))


if __name__ == "__main__":
    main()
