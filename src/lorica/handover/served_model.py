"""A model behind OpenAI's API: vLLM, SGLang, llama.cpp's server, Ray Serve, `lorica serve`.

Their answers differ in where log-probabilities stand: in `token_logprobs`, or in `content` as
llama.cpp gives them. llama.cpp also has no model of the base's name: there a request leaves its
adapters out by `lora: [{"id": 0, "scale": 0}]`.
"""

import math
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from lorica.errors import counted, listed
from lorica.formats.golden import GoldenRow
from lorica.handover.endpoint import Endpoint, EndpointError
from lorica.handover.replay import Answer, Opening


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
        self._adapters, self.own = adapters, own

    def logprob_after(self, ids: Sequence[int], *, adapted: bool) -> float | None:
        if not adapted and self.base is None and not self._adapters:
            return None
        choice = self._complete(list(ids), 1, adapted)
        values = self._logprobs(choice)
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
        usage = reply.get("usage")
        tokens = usage.get("prompt_tokens") if isinstance(usage, dict) else None
        values = self._logprobs(_choice(reply))
        return Opening(tokens if isinstance(tokens, int) else None, values[0] if values else None)

    def _logprobs(self, choice: dict[str, Any]) -> list[float]:
        """Of the tokens of an answer, in each of the forms that servers use."""
        match choice.get("logprobs"):
            case {"token_logprobs": [*values]}:
                pass
            case {"content": [*items]}:
                values = [item.get("logprob") for item in items if isinstance(item, dict)]
            case _:
                return []
        numbers = [float(v) for v in values if isinstance(v, int | float) and math.isfinite(v)]
        if len(numbers) < len(values):
            raise EndpointError(
                f"{self._endpoint.url} gives log-probabilities that are no numbers: "
                f"{listed(map(repr, values))[:200]}.",
                fix="see what the server logs: its weights or its numbers may have overflowed",
            )
        return numbers

    def _complete(self, ids: list[int], max_tokens: int, adapted: bool) -> dict[str, Any]:
        body = {**self._body(max_tokens, adapted), "prompt": ids, "logprobs": 1}
        return _choice(self._endpoint.post("/completions", body))

    def _body(self, max_tokens: int, adapted: bool) -> dict[str, Any]:
        name = self.name if adapted or self.base is None else self.base
        body: dict[str, Any] = {"model": name, "max_tokens": max_tokens, "temperature": 0}
        if self._adapters:
            body["lora"] = [
                {"id": i, "scale": float(adapted and i == self.own)} for i in self._adapters
            ]
        return body


def served_model(
    endpoint: Endpoint, name: str, recorded_base: str, base_name: str | None = None
) -> ServedModel:
    """The model `name` of an endpoint and its base. Raises: EndpointError if it is not served.

    recorded_base: where the base was. base_name: the base's name there; None: as it is listed.
    """
    models = {model["id"]: model for model in endpoint.models()}
    if adapters := endpoint.adapters():
        return ServedModel(endpoint, name, None, list(adapters), _adapter_of(name, adapters))
    for wanted in (name, base_name):
        if wanted is not None and wanted not in models:
            raise EndpointError(
                f"{endpoint.url} serves no model {wanted!r:.80}.",
                served=listed(models, 12),
                fix="--model NAME, --base-model NAME, or start the server with the adapter",
            )
    parent = models[name].get("parent") or models[name].get("root")
    parent = parent if isinstance(parent, str) and parent in models else None
    bases = [base_name, parent, _base_in(models, recorded_base)]
    return ServedModel(endpoint, name, next((b for b in bases if b and b != name), None))


def _base_in(models: dict[str, dict[str, Any]], recorded_base: str) -> str | None:
    """The listed model that is the recorded base, by its path or its last part."""
    last = recorded_base.rstrip("/").rpartition("/")[2]
    return next((name for name in models if name in (recorded_base, last)), None)


def _adapter_of(name: str, adapters: dict[int, str]) -> int:
    """The id of llama.cpp's adapter `name`: the only one, or that in a folder of this name."""
    own = [i for i, path in adapters.items() if PurePath(path).parent.name == name]
    own = list(adapters) if len(adapters) == 1 else own
    if len(own) != 1:
        raise EndpointError(
            f"the server has {len(adapters)} adapters, and {len(own)} of them in a folder {name}.",
            served=listed(adapters.values(), 12),
            fix="start it with start.sh of the export, or with this adapter alone",
        )
    return own[0]


def _choice(reply: dict[str, Any]) -> dict[str, Any]:
    match reply.get("choices"):
        case [dict(choice)]:
            return choice
        case [*choices]:
            what = f"the server's answer has {counted(len(choices), 'choice')} in place of one."
        case _:
            what = "the server's answer has no choices."
    raise EndpointError(what, fix="check the URL")
