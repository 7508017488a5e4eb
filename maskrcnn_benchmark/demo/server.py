"""``mrb serve``: a page on this machine where one drops a picture, types words and sees boxes.

The server keeps encoded pictures in memory and writes nothing to disk. Its answers are those of
:class:`~maskrcnn_benchmark.api.Predictor`.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import re
import socket
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, Field, ValidationError
from starlette.exceptions import HTTPException

from maskrcnn_benchmark.api import Found, as_record, write_query
from maskrcnn_benchmark.checkpoint.io import find_weights
from maskrcnn_benchmark.demo.desk import FORMATS, MIB, Desk, Limits, Refused
from maskrcnn_benchmark.demo.draw import colour_of, ink_on
from maskrcnn_benchmark.demo.guard import Guard
from maskrcnn_benchmark.engine.inference import Model
from maskrcnn_benchmark.errors import ConfigError, PromptError, UserError
from maskrcnn_benchmark.structures import Prompt
from maskrcnn_benchmark.structures.prompt import OWN_WORDS
from maskrcnn_benchmark.text.typed import split_names, split_phrases

logger = logging.getLogger(__name__)

PAGE = Path(__file__).with_name("page.html")
QUESTION = 64 * 1024  # bytes that a question may take
NAME_KEPT = 120  # characters of the name of an upload


class Question(BaseModel):
    """What the page asks of a picture."""

    picture: str = Field(max_length=64)
    words: str = Field(max_length=4000)
    mode: Literal["names", "phrases", "sentence"] = "names"


@dataclass(frozen=True)
class Source:
    """What :func:`~maskrcnn_benchmark.api.load_model` was called with."""

    config: str
    weights: str
    device: str = "auto"
    opts: tuple[str, ...] = ()

    def call(self) -> str:
        """That call as Python, to be run in any folder."""
        config = Path(self.config).resolve() if Path(self.config).exists() else self.config
        weights = find_weights(self.weights).resolve()
        opts = f", opts={list(self.opts)!r}" if self.opts else ""
        return f"load_model({str(config)!r}, {str(weights)!r}, device={self.device!r}{opts})"


def build_app(model: Model, source: Source, limits: Limits | None = None, hosts: Collection[str] = ()) -> FastAPI:
    """The page and what it asks.

    ``GET /`` is the page and ``GET /about`` what it needs to know. ``POST /pictures?name=NAME`` takes a picture file as
    its body and answers with a key; ``POST /find`` takes a :class:`Question` and answers with what was found, as
    :meth:`Found.to_json` has it, and more. A mistake is answered with ``{"error": "..."}`` and a status of 400 to 499.

    Args:
        model: Answers.
        source: How the model was loaded, for the lines of Python that do the same.
        limits: What is taken and kept.
        hosts: Names of this server besides localhost and numbers, see :class:`Guard`.
    """
    limits = limits or Limits()
    desk = Desk(model, limits)
    page = PAGE.read_text(encoding="utf-8")
    facts = facts_of(model, source, limits)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        desk.close()

    # no pages of documentation: those of the library load scripts from elsewhere
    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, hosts=hosts, headers={"Content-Security-Policy": content_policy(page)})
    app.add_exception_handler(UserError, _tell_mistake)
    app.add_exception_handler(HTTPException, _tell_status)
    app.add_exception_handler(Exception, _tell_fault)

    @app.get("/")
    async def show() -> HTMLResponse:
        return HTMLResponse(page)

    @app.get("/about")
    async def about() -> JSONResponse:
        return JSONResponse(facts)

    @app.post("/pictures")
    async def add(request: Request, name: str = "") -> JSONResponse:
        body = await read_body(request, limits.upload, "the picture")
        kept = await desk.add(body, file_name(name))
        height, width = kept.size
        return JSONResponse({"picture": kept.key, "file": kept.file, "width": width, "height": height})

    @app.post("/find")
    async def find(request: Request) -> JSONResponse:
        question = read_question(await read_body(request, QUESTION, "the question"))
        query = read_words(question.words, question.mode)
        prompts = write_query(model.recipe, *(query.get(key) for key in ("labels", "caption", "phrases")))
        kept, found = await desk.find(question.picture, query)
        parts = show_own(found) if prompts[0].ids[:1] == (OWN_WORDS,) else show_parts(prompts)
        more = {"file": kept.file, "parts": parts, "python": python_lines(source, kept.file, query)}
        return JSONResponse({**as_record(found), **more})

    return app


def facts_of(model: Model, source: Source, limits: Limits) -> dict[str, object]:
    """What the page needs to know before it asks anything."""
    return {
        "model": f"{Path(source.config).stem} · {Path(source.weights).name}",
        "upload": limits.upload,
        "formats": FORMATS,
        "own_words": model.recipe.prompts.own_words,
    }


def content_policy(page: str) -> str:
    """A policy under which only the page's own script and style run, and nothing comes from elsewhere."""
    kinds = {"script": "script-src", "style": "style-src"}
    rules = ["default-src 'none'", "img-src blob: data:", "connect-src 'self'"]
    for kind, rule in kinds.items():
        texts = re.findall(rf"<{kind}>(.*?)</{kind}>", page, re.DOTALL)
        digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
        rules.append(f"{rule} " + " ".join(f"'sha256-{digest}'" for digest in digests))
    return "; ".join([*rules, "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"])


async def read_body(request: Request, most: int, what: str) -> bytes:
    """The body of a request; reading stops as soon as it is too long.

    Raises:
        Refused: it has more than ``most`` bytes.
    """
    limit = f"{most / MIB:g} MiB" if most >= MIB else f"{most} bytes"
    too_long = Refused(413, f"{what} has more than {limit}: make it smaller")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > most:
        raise too_long
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise too_long
    return bytes(body)


def read_question(body: bytes) -> Question:
    """The question in JSON.

    Raises:
        Refused: it is no question; says which part.
    """
    try:
        return Question.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the question"
        raise Refused(400, f"{where}: {first['msg']}") from None


def read_words(words: str, mode: str) -> dict[str, Any]:
    """Typed words as arguments of :meth:`~maskrcnn_benchmark.api.Predictor.predict`.

    Raises:
        PromptError: there are none.
    """
    if not words.strip(" ,"):
        raise PromptError("no words yet: type what to look for")
    if mode == "names":
        return {"labels": split_names(words)}
    if mode == "sentence":
        return {"caption": words.strip()}
    caption, phrases = split_phrases(words.strip())
    return {"caption": caption, "phrases": phrases} if phrases else {"caption": caption}


def show_parts(prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
    """Prompts as pieces of text for the page to show; those that are looked for have a label and a colour."""
    parts: list[dict[str, Any]] = []
    for prompt in prompts:
        at = 0
        for entity, (label, ((begin, end),)) in enumerate(zip(prompt.ids, prompt.spans, strict=True)):
            if label in prompt.ids[:entity]:  # another word of the same
                continue
            if at < begin and not prompt.names:  # between names are separators only
                parts.append({"text": prompt.text[at:begin]})
            parts.append(_named(prompt.name(entity), label))
            at = end
        if at < len(prompt.text) and not prompt.names:
            parts.append({"text": prompt.text[at:]})
    return parts


def show_own(found: Found) -> list[dict[str, Any]]:
    """The words that boxes were called by, as :func:`show_parts`; "own" are shown only with a box that is shown."""
    return [{**_named(name, label), "own": True} for label, name in (found.names or {}).items()]


def _named(text: str, label: int) -> dict[str, Any]:
    colour = colour_of(label - 1)
    return {"text": text, "label": label, "colour": colour, "ink": ink_on(colour)}


def python_lines(source: Source, file: str, query: Mapping[str, Any]) -> tuple[str, str]:
    """A program that finds the same in the folder of the picture: what comes before and after the lowest score."""
    asked = ", ".join(f"{key}={value!r}" for key, value in query.items())
    before = (
        "from maskrcnn_benchmark import Predictor, load_model\n\n"
        f"predictor = Predictor({source.call()})\n"
        f"found = predictor.set_image({file!r}).predict({asked}, min_score="
    )
    return before, f")\nfound.draw().save({f'{Path(file).stem}_found.png'!r})\nprint(found.to_json())\n"


def file_name(text: str) -> str:
    """The name of an upload, for messages and results only: no folders, nothing that cannot be printed."""
    name = "".join(letter for letter in re.split(r"[/\\]", text)[-1] if letter.isprintable()).strip()
    return name[-NAME_KEPT:] or "picture"


def open_listener(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one.

    Raises:
        ConfigError: the address is not of this machine, or the port is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot listen at {host} port {port} ({reason}): choose another --port or --host") from None


def serve(app: FastAPI, listener: socket.socket) -> None:
    """Answer until Ctrl-C; prints the address."""
    host, port = listener.getsockname()[:2]
    print(f"the page is at http://{f'[{host}]' if ':' in host else host}:{port} (Ctrl-C ends it)", flush=True)
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, proxy_headers=False)
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])


async def _tell_mistake(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": str(error)}, error.status if isinstance(error, Refused) else 400)


async def _tell_status(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": str(error.detail)}, error.status_code)


async def _tell_fault(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": "the server failed; what it printed says where"}, 500)
