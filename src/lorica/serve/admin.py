"""The app for the operator: which adapters are served, and vLLM's names for loading them.

It listens on a port or a socket of its own, with a key of its own. An adapter is named, never
addressed by a path: it is a folder of the one root that the server was started with.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from lorica.serve.exchange import Engine
from lorica.serve.generations import Generation
from lorica.serve.http import (
    ERRORS,
    StrictRoute,
    bare_app,
    health_routes,
    metrics_routes,
    model_object,
)
from lorica.serve.metrics import Metrics
from lorica.serve.names import folder_in
from lorica.serve.refusals import InvalidRequest
from lorica.serve.store import Store

T = TypeVar("T")
THREADS = 8
"""Calls of operators that run at the same time."""
Name = Annotated[str, Field(min_length=1, max_length=64)]
Condition = Annotated[str, Field(min_length=1, max_length=256)]
Conditions = Annotated[list[Condition], Field(max_length=1000, fail_fast=True)]
Expected = Annotated[int, Field(ge=0, lt=2**31)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Replacement(_Body):
    """folder: in the root; by default that of the adapter's name. expected_generation: of the
    adapter now. pinned: kept from eviction and unloading; by default as before."""

    expected_generation: Expected
    folder: Name | None = None
    pinned: bool | None = None
    conditions: Conditions = []


class NewAdapter(_Body):
    """As Replacement, of a name that is not in use."""

    name: Name
    folder: Name | None = None
    pinned: bool = False
    conditions: Conditions = []


class Change(_Body):
    pinned: bool


class VllmLoad(_Body):
    """vLLM's body. lora_path: a name in the root, or the root's path and a name."""

    lora_name: Name
    lora_path: Annotated[str, Field(min_length=1, max_length=4096)]
    load_inplace: bool = False
    lora_int_id: int | None = None


class VllmUnload(_Body):
    lora_name: Name
    lora_int_id: int | None = None


def create_admin_app(engine: Engine, store: Store, metrics: Metrics, root: Path | None) -> FastAPI:
    """The app, which stands behind a Gate. root: the folder of adapters; None: none can be loaded
    while the server runs."""
    app = bare_app("lorica serve: administration", for_operator=True)
    adapters = _Adapters(engine, store, root)
    app.include_router(_adapter_routes(adapters))
    app.include_router(_vllm_routes(adapters))
    app.include_router(health_routes(engine))
    app.include_router(metrics_routes(metrics))
    return app


class _Adapters:
    """The store, called on a thread, by names of folders in the root."""

    def __init__(self, engine: Engine, store: Store, root: Path | None):
        self.engine, self.store, self._root = engine, store, root
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="lorica-admin")

    async def run(self, call: Callable[[], T]) -> T:
        """Call on a thread of the operator's own: those of clients may all be taken."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    async def load(
        self,
        request: Request,
        name: str,
        folder: str | None,
        *,
        expected_generation: int | None,
        pinned: bool | None = None,
        conditions: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Load or replace an adapter, and name it in the log. Returns: its card.

        Raises: LoricaError.
        """
        notes = request.scope["log_notes"] = [f"adapter={name!r}", f"folder={folder or name!r}"]

        def load() -> Generation:
            path = folder_in(self._checked_root(), folder or name)
            return self.store.load(
                name,
                path,
                expected_generation=expected_generation,
                pinned=pinned,
                conditions=conditions,
            )

        new = await self.run(load)
        notes += [f"digest={new.digest}", f"generation={new.number}"]
        return self.card(name)

    async def unload(self, request: Request, name: str, expected_generation: int | None) -> int:
        """Take an adapter away, and name it in the log. Returns: bytes. Raises: LoricaError."""
        notes = request.scope["log_notes"] = [f"adapter={name!r:.80}"]
        freed = await self.run(
            lambda: self.store.unload(name, expected_generation=expected_generation)
        )
        notes.append(f"freed={freed}")
        return freed

    def card(self, name: str) -> dict[str, Any]:
        """Raises: ModelNotFound."""
        return model_object(self.engine.card(name), for_operator=True)

    def cards(self) -> list[dict[str, Any]]:
        """Those of all adapters, without the base's."""
        cards = [card for card in self.engine.cards() if card.parent is not None]
        return [model_object(card, for_operator=True) for card in cards]

    def name_of(self, path: str) -> str:
        """The name of a folder in the root that vLLM's clients give as a path.

        Raises: InvalidRequest if the path leads elsewhere.
        """
        pure, root = PurePosixPath(path), self._checked_root()
        if pure.parent in (PurePosixPath(root), PurePosixPath(root.resolve())):
            return pure.name
        if "/" in path:
            raise InvalidRequest(
                "adapters are loaded only from the folder of --adapters.",
                fix="give the name of a folder in it as lora_path",
                param="lora_path",
            )
        return path

    def _checked_root(self) -> Path:
        if self._root is None:
            raise InvalidRequest(
                "this server has no folder of adapters to load from.",
                fix="start it with --adapters FOLDER",
            )
        return self._root


def _adapter_routes(adapters: _Adapters) -> APIRouter:
    routes = APIRouter(prefix="/admin/adapters", route_class=StrictRoute, responses=ERRORS)
    store = adapters.store

    @routes.get("")
    async def list_adapters() -> JSONResponse:
        """All adapters with their states, and replaced ones that streams still use."""
        draining = store.draining()
        return JSONResponse(
            {
                "object": "list",
                "data": adapters.cards(),
                "draining": [model_object(card, for_operator=True) for card in draining],
            }
        )

    @routes.post("", status_code=201)
    async def load_adapter(request: Request, body: NewAdapter) -> JSONResponse:
        """Load an adapter under a name that is not in use."""
        card = await adapters.load(
            request,
            body.name,
            body.folder,
            expected_generation=0,
            pinned=body.pinned,
            conditions=body.conditions,
        )
        return JSONResponse(card, 201)

    @routes.put("/{name}")
    async def replace_adapter(request: Request, name: str, body: Replacement) -> JSONResponse:
        """Let a name point to what its folder holds now. Running answers keep what they have."""
        card = await adapters.load(
            request,
            name,
            body.folder,
            expected_generation=body.expected_generation,
            pinned=body.pinned,
            conditions=body.conditions,
        )
        return JSONResponse(card)

    @routes.patch("/{name}")
    async def pin_adapter(name: str, body: Change) -> JSONResponse:
        """Keep an adapter from eviction and unloading, or allow them again."""
        await adapters.run(lambda: store.pin(name, body.pinned))
        return JSONResponse(adapters.card(name))

    @routes.delete("/{name}")
    async def unload_adapter(
        request: Request,
        name: str,
        expected_generation: Annotated[Expected | None, Query()] = None,
    ) -> JSONResponse:
        """Take an adapter away. Running answers go on."""
        freed = await adapters.unload(request, name, expected_generation)
        return JSONResponse({"id": name, "object": "model", "deleted": True, "freed_bytes": freed})

    return routes


def _vllm_routes(adapters: _Adapters) -> APIRouter:
    routes = APIRouter(prefix="/v1", route_class=StrictRoute, responses=ERRORS)

    @routes.post("/load_lora_adapter", response_class=PlainTextResponse)
    async def load_lora_adapter(request: Request, body: VllmLoad) -> Response:
        """As vLLM: load an adapter; load_inplace: also over one of this name."""
        await adapters.load(
            request,
            body.lora_name,
            adapters.name_of(body.lora_path),
            expected_generation=None if body.load_inplace else 0,
        )
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    @routes.post("/unload_lora_adapter", response_class=PlainTextResponse)
    async def unload_lora_adapter(request: Request, body: VllmUnload) -> Response:
        """As vLLM: unload an adapter."""
        await adapters.unload(request, body.lora_name, None)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

    return routes
