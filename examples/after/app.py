"""A small service that answers questions, as it is written against one backend.

OLLAMA_HOST=127.0.0.1:11434 python app.py
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import PromptTemplate
from llm_hub import get_provider
from pydantic import BaseModel

llm = get_provider().initialize_llm(temperature=0)
chain = PromptTemplate.from_template("{question}") | llm | StrOutputParser()
app = FastAPI()


class Question(BaseModel):
    question: str


class Answer(BaseModel):
    answer: str


@app.post("/ask")
async def ask(asked: Question) -> Answer:
    return Answer(answer=await chain.ainvoke(asked.model_dump()))


@app.post("/batch")
def batch(asked: list[Question]) -> list[Answer]:
    return [Answer(answer=answer) for answer in chain.batch([one.model_dump() for one in asked])]


@app.post("/stream")
def stream(asked: Question) -> StreamingResponse:
    pieces: Iterator[str] = chain.stream(asked.model_dump())
    return StreamingResponse(pieces, media_type="text/plain")


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ.get("PORT", "8000")), log_level="warning")
