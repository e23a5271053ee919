"""Ask llama.cpp's server for tokens and log-probabilities."""

import json
from collections.abc import Sequence
from typing import Any
from urllib.request import Request, urlopen

import torch
from torch import Tensor

SECONDS = 60


def tokens_of(address: str, text: str, *, special: bool = False) -> list[int]:
    """The token ids of a text. special: with BOS and EOS, as the file asks for."""
    body = {"content": text, "add_special": special, "parse_special": True}
    return _post(address, "/tokenize", body)["tokens"]


def log_probabilities(
    address: str, ids: Sequence[int], vocabulary: int, scales: Sequence[float] = ()
) -> Tensor:
    """Log-probabilities (T, V) of the token after each of the T `ids`, float32.

    scales: of each adapter that the server has.
    """
    # A sampled end, or half a character, would come without probabilities: a letter is sampled.
    # The probabilities are those before the bias.
    letter = tokens_of(address, "a")[-1]
    rows = torch.full((len(ids), vocabulary), float("-inf"))
    for t in range(len(ids)):
        body = {
            "prompt": list(ids[: t + 1]),
            "n_predict": 1,
            "n_probs": vocabulary,
            "temperature": 1.0,
            "logit_bias": [[letter, 1000.0]],
            "cache_prompt": True,
            "lora": [{"id": i, "scale": scale} for i, scale in enumerate(scales)],
        }
        answer = _post(address, "/completion", body)
        for entry in answer["completion_probabilities"][0]["top_logprobs"]:
            rows[t, entry["id"]] = entry["logprob"]
    return rows


def _post(address: str, path: str, body: dict[str, Any]) -> Any:
    request = Request(
        address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urlopen(request, timeout=SECONDS) as answer:
        return json.load(answer)
