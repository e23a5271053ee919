"""The app for clients: OpenAI's routes, health and the page."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from lorica import __version__, strict_json
from lorica.errors import LoricaError
from lorica.serve import page
from lorica.serve.accept import Acceptor, card_for
from lorica.serve.auth import Tenant
from lorica.serve.envelope import BUG, Failure, failure_of, failure_of_mistakes, failure_of_status
from lorica.serve.exchange import Engine, ModelCard
from lorica.serve.limits import Limits
from lorica.serve.metrics import CONTENT_TYPE, Metrics
from lorica.serve.openai_api import ChatBody, CompletionBody
from lorica.serve.refusals import NotAnOperator

HEALTH = ("/health/live", "/health/ready")
METRICS = ("/metrics",)
PARSED_AT_ONCE = 2**16
"""Bytes of a body that is parsed on the event loop: a larger one takes milliseconds."""
ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "OpenAI's error object"},
    "503": {"description": "not ready, or stopping; Retry-After says when to come back"},
}
"""What the schema says of every route."""


class StrictRequest(Request):
    """A request whose JSON is parsed strictly: no duplicate keys, no NaN, no deep nesting."""

    async def json(self) -> Any:
        body = await self.body()
        try:
            if len(body) <= PARSED_AT_ONCE:
                return strict_json.parse(body, depth=Limits().depth)
            return await asyncio.to_thread(strict_json.parse, body, depth=Limits().depth)
        except json.JSONDecodeError:
            raise
        except ValueError as error:
            raise json.JSONDecodeError(str(error), "", 0) from None


class StrictRoute(APIRoute):
    """A route that gets a StrictRequest."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(StrictRequest(request.scope, request.receive))

        return handle


def create_app(engine: Engine, metrics: Metrics, *, deadline: float) -> FastAPI:
    """The app, which stands behind a Gate. deadline: seconds that an answer may take."""
    app = bare_app("lorica serve")
    acceptor = Acceptor(engine=engine, metrics=metrics, deadline=deadline)
    app.include_router(_openai_routes(engine, acceptor))
    app.include_router(health_routes(engine))
    app.include_router(metrics_routes(metrics))
    app.include_router(page_routes())
    return app


def bare_app(title: str, *, for_operator: bool = False) -> FastAPI:
    """An app without routes, whose errors are OpenAI's error object."""
    app = FastAPI(title=title, version=__version__, docs_url=None, redoc_url=None)
    app.router.redirect_slashes = False

    async def on_mistakes(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return reply(request, failure_of_mistakes(error.errors()))

    async def on_status(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = f"{request.method} {request.url.path[:100]!r}: {error.detail}."
        failure = failure_of_status(error.status_code, message)
        return reply(request, failure, error.headers)

    async def on_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, LoricaError)
        failure = failure_of(error, for_operator=for_operator)
        if failure is None:
            raise error
        known = request.scope.get("log_notes", []) if for_operator else []
        response = reply(request, failure)
        request.scope["log_notes"] = [*known, *failure.log_notes(for_operator=for_operator)]
        return response

    async def on_bug(request: Request, error: Exception) -> Response:
        return reply(request, BUG)  # and the gate logs it

    app.add_exception_handler(RequestValidationError, on_mistakes)
    app.add_exception_handler(HTTPException, on_status)
    app.add_exception_handler(LoricaError, on_error)
    app.add_exception_handler(Exception, on_bug)
    return app


def reply(request: Request, failure: Failure, headers: Any = None) -> Response:
    """A failure as a response, and its code in the log."""
    request.scope["log_notes"] = failure.log_notes()
    both = dict(headers or {}) | dict(failure.headers)
    return Response(failure.as_json(), failure.status, both, "application/json")


def tenant_of(request: Request) -> Tenant:
    """Who the gate let in."""
    return request.scope["caller"]


def _openai_routes(engine: Engine, acceptor: Acceptor) -> APIRouter:
    routes = APIRouter(prefix="/v1", route_class=StrictRoute, responses=ERRORS)

    async def accepted(request: Request, body: CompletionBody | ChatBody) -> Response:
        return await acceptor.accept(
            body, tenant_of(request), request.scope["request_id"], request.is_disconnected
        )

    @routes.get("/models")
    async def list_models(request: Request) -> JSONResponse:
        """The models that this key may use."""
        tenant = tenant_of(request)
        cards = [card for card in engine.cards() if tenant.allows(card.name)]
        cards = [each for card in cards if card.state != "failed" for each in by_condition(card)]
        return JSONResponse({"object": "list", "data": list(map(model_object, cards))})

    @routes.get("/models/{model:path}")
    async def get_model(request: Request, model: str) -> JSONResponse:
        """One model, by its name or "alias:condition"."""
        card = card_for(engine, model, tenant_of(request))
        only = replace(card, name=model, conditions=()) if ":" in model else card
        return JSONResponse(model_object(only))

    @routes.post("/completions")
    async def complete(request: Request, body: CompletionBody) -> Response:
        """Continue prompts."""
        return await accepted(request, body)

    @routes.post("/chat/completions")
    async def chat(request: Request, body: ChatBody) -> Response:
        """Answer a conversation, in the format that the adapter was trained with."""
        return await accepted(request, body)

    return routes


def by_condition(card: ModelCard) -> list[ModelCard]:
    """The models that can be asked: "alias:condition" for each known condition, or the card."""
    names = [f"{card.name}:{condition}" for condition in card.conditions]
    return [replace(card, name=name, conditions=()) for name in names] or [card]


def model_object(card: ModelCard, *, for_operator: bool = False) -> dict[str, Any]:
    """A card as OpenAI's model object, with the card's own fields beside it."""
    fields = asdict(card)
    if not for_operator:
        del fields["warnings"]
    return {
        "id": fields.pop("name"),
        "object": "model",
        "created": int(card.loaded_at),
        "owned_by": "lorica",
        "root": card.parent or card.name,
        **fields,
    }


def health_routes(engine: Engine) -> APIRouter:
    """/health/live: the process answers. /health/ready: it takes requests."""
    routes = APIRouter(prefix="/health")

    @routes.get("/live")
    async def live() -> dict[str, str]:
        return {"status": "live"}

    @routes.get("/ready", responses={"503": {"description": "not ready, or stopping"}})
    async def ready(request: Request) -> JSONResponse:
        state = "draining" if engine.is_draining else "ready" if engine.is_ready else "starting"
        headers = {} if state == "ready" else {"Retry-After": "5"}
        request.scope["log_notes"] = [state]
        return JSONResponse({"status": state}, 200 if state == "ready" else 503, headers)

    return routes


def metrics_routes(metrics: Metrics) -> APIRouter:
    routes = APIRouter()

    @routes.get("/metrics", response_class=Response, responses=ERRORS)
    async def get_metrics(request: Request) -> Response:
        """Figures for Prometheus, for an operator: they name the models of all tenants."""
        if not tenant_of(request).is_admin:
            raise NotAnOperator
        return Response(metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    return routes


def page_routes() -> APIRouter:
    """The page's files, which are read once, here: no request opens a file."""
    routes = APIRouter(include_in_schema=False)

    def add(path: str, file: page.PageFile) -> None:
        @routes.get(path)
        async def get_file() -> Response:
            return Response(file.content, headers=page.HEADERS, media_type=file.media_type)

    for path, file in page.read_files().items():
        add(path, file)
    return routes


def public_paths() -> set[str]:
    """Paths of the client app that need no key."""
    return {*HEALTH, *page.read_files()}
