"""A model behind OpenAI's API: vLLM, SGLang, llama.cpp's server, Ray Serve, `lorica serve`.

Their answers differ in where log-probabilities stand: in `token_logprobs`, or in `content` as
llama.cpp gives them. llama.cpp also has no model of the base's name: there a request leaves its
adapters out by `lora: [{"id": 0, "scale": 0}]`.
"""

import json
import math
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from lorica.errors import LoricaError, ResourceError, listed
from lorica.formats.golden import GoldenRow
from lorica.handover.replay import Answer, Opening

TIMEOUT = 120.0
"""Seconds for one answer."""
MAX_BYTES = 16 * 2**20


class EndpointError(LoricaError):
    """A server refused a request, or answered what cannot be read."""


class Endpoint:
    """One server. url: with or without /v1. key: sent as a bearer token."""

    def __init__(self, url: str, key: str | None = None):
        url = url.rstrip("/")
        self.url = url if url.endswith("/v1") else f"{url}/v1"
        self._headers = {"Content-Type": "application/json"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"

    def models(self) -> list[dict[str, Any]]:
        """What the server lists. Raises: ResourceError, EndpointError."""
        listing = self.get(f"{self.url}/models")
        return [model for model in listing.get("data") or [] if isinstance(model, dict)]

    def adapters(self) -> list[int]:
        """The ids of llama.cpp's adapters; []: it is another server."""
        try:
            listing = self.get(self.url.removesuffix("/v1") + "/lora-adapters")
        except EndpointError:
            return []
        items = listing if isinstance(listing, list) else []
        return [int(item["id"]) for item in items if isinstance(item, dict) and "id" in item]

    def get(self, url: str) -> Any:
        return self._send(urllib.request.Request(url, headers=self._headers))

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        data = json.dumps(body).encode()
        answer = self._send(urllib.request.Request(self.url + path, data, self._headers))
        if not isinstance(answer, dict):
            raise EndpointError(f"{self.url}{path} gave no JSON object.", fix="check the URL")
        return answer

    def _send(self, request: urllib.request.Request) -> Any:
        """Raises: ResourceError if nobody answers; EndpointError for a refusal."""
        if not request.full_url.startswith(("http://", "https://")):
            raise EndpointError(f"{request.full_url} is no URL.", fix="http://127.0.0.1:8000")
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as reply:
                return json.loads(reply.read(MAX_BYTES))
        except urllib.error.HTTPError as error:
            why = error.read(2000).decode(errors="replace")
            raise EndpointError(
                f"{request.full_url} refused a request: status {error.code}.",
                why=" ".join(why.split())[:500],
                fix="check the name of the model, and the key in OPENAI_API_KEY"
                if error.code in (401, 403, 404)
                else "see what the server logs",
            ) from None
        except (OSError, TimeoutError) as error:
            raise ResourceError(
                f"nobody answers at {request.full_url}: {error}.", fix="start the server"
            ) from None
        except ValueError as error:
            raise EndpointError(
                f"{request.full_url} gave no JSON: {error}.", fix="check the URL"
            ) from None


class ServedModel:
    """One model of an endpoint, as `replay` asks it. base: its base's name; None: it has none.

    adapters: the ids of llama.cpp's adapters; `own`: the one that is asked.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        name: str,
        base: str | None,
        adapters: Sequence[int] = (),
        own: int | None = None,
    ):
        self._endpoint, self.name, self.base = endpoint, name, base
        self._adapters, self._own = adapters, own

    def logprob_after(self, ids: Sequence[int], *, adapted: bool) -> float | None:
        if not adapted and self.base is None and not self._adapters:
            return None
        choice = self._complete(list(ids), 1, adapted)
        values = _logprobs(choice)
        if not values and choice.get("finish_reason") == "stop" and not choice.get("text"):
            return math.nan
        if not values:
            raise EndpointError(
                f"{self._endpoint.url} gives no log-probabilities.",
                fix="start the server so that it does",
            )
        return values[0]

    def answer(self, ids: Sequence[int], max_tokens: int) -> Answer:
        choice = self._complete(list(ids), max_tokens, True)
        return Answer(str(choice.get("text") or ""), choice.get("finish_reason") == "stop")

    def opening(self, row: GoldenRow) -> Opening | None:
        if row.messages is not None:
            body = {
                **self._body(1, True),
                "messages": list(row.messages),
                "logprobs": True,
                "top_logprobs": 1,
            }
            reply = self._endpoint.post("/chat/completions", body)
        elif row.prompt_text is not None:
            body = {**self._body(1, True), "prompt": row.prompt_text, "logprobs": 1}
            reply = self._endpoint.post("/completions", body)
        else:
            return None
        tokens = (reply.get("usage") or {}).get("prompt_tokens")
        values = _logprobs(_choice(reply))
        return Opening(tokens if isinstance(tokens, int) else None, values[0] if values else None)

    def _complete(self, ids: list[int], max_tokens: int, adapted: bool) -> dict[str, Any]:
        body = {**self._body(max_tokens, adapted), "prompt": ids, "logprobs": 1}
        return _choice(self._endpoint.post("/completions", body))

    def _body(self, max_tokens: int, adapted: bool) -> dict[str, Any]:
        name = self.name if adapted or self.base is None else self.base
        body: dict[str, Any] = {"model": name, "max_tokens": max_tokens, "temperature": 0}
        if self._adapters:
            body["lora"] = [
                {"id": i, "scale": float(adapted and i == self._own)} for i in self._adapters
            ]
        return body


def served_model(
    endpoint: Endpoint, name: str, recorded_base: str, base_name: str | None = None
) -> ServedModel:
    """The model `name` of an endpoint and its base. Raises: EndpointError if it is not served.

    recorded_base: where the base was. base_name: the base's name there; None: as it is listed.
    """
    if adapters := endpoint.adapters():
        return ServedModel(endpoint, name, None, adapters, adapters[0])
    models = {str(model.get("id")): model for model in endpoint.models()}
    for wanted in (name, base_name):
        if wanted is not None and wanted not in models:
            raise EndpointError(
                f"{endpoint.url} serves no model {wanted!r:.80}.",
                served=listed(models, 12),
                fix="--model NAME, --base-model NAME, or start the server with the adapter",
            )
    parent = models[name].get("parent") or models[name].get("root")
    bases = [base_name, parent if parent in models else None, _base_in(models, recorded_base)]
    return ServedModel(endpoint, name, next((b for b in bases if b and b != name), None))


def _base_in(models: dict[str, dict[str, Any]], recorded_base: str) -> str | None:
    """The listed model that is the recorded base, by its path or its last part."""
    last = recorded_base.rstrip("/").rpartition("/")[2]
    return next((name for name in models if name in (recorded_base, last)), None)


def _choice(reply: dict[str, Any]) -> dict[str, Any]:
    match reply.get("choices"):
        case [dict(choice), *_]:
            return choice
    raise EndpointError("the server's answer has no choices.", fix="check the URL")


def _logprobs(choice: dict[str, Any]) -> list[float]:
    """Of the tokens of an answer, in each of the forms that servers use."""
    match choice.get("logprobs"):
        case {"token_logprobs": [*values]}:
            pass
        case {"content": [*items]}:
            values = [item.get("logprob") for item in items if isinstance(item, dict)]
        case _:
            return []
    return [float(v) if isinstance(v, int | float) else math.nan for v in values]
