"""How each runtime is started with an export: start.sh, and what Ray Serve reads."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from lorica.handover.runtimes import Runtime

TOGETHER = 8
"""Adapters of one batch: more take memory of the accelerator, and can be set."""


@dataclass(frozen=True, kw_only=True)
class StartPlan:
    """What is started. base: a folder or a hub id. names: the adapters, as requests name them.

    places: the folder or file of each adapter, from the export's own folder; "." is itself.
    rank: the largest of the adapters; None: they are merged into the model. template: the place
    of the chat template of the training; None: the base's is used. stops: the folder of
    generation_config.json with the stops of the training; None: the base's are used. cloud: where
    Ray reads adapters.
    """

    runtime: Runtime
    base: str
    names: Sequence[str]
    places: Sequence[str]
    rank: int | None
    template: str | None
    stops: str | None = None
    cloud: str | None = None

    @property
    def setting(self) -> int:
        """Of the runtime, for the largest rank."""
        assert self.rank is not None
        return self.runtime.setting_for(self.rank) or self.rank


def start_script(plan: StartPlan) -> str | None:
    """The text of start.sh; None: the runtime is a library, and is not started."""
    command = COMMANDS.get(plan.runtime.name)
    if command is None:
        return None
    names = ", ".join(plan.names)
    return (
        "#!/bin/sh\n"
        f"# {plan.runtime.title} with {names}; further options are passed on to it.\n"
        f"# Written by lorica {version('lorica')} by the rules of {plan.runtime.label}.\n"
        "set -e\n"
        'here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)\n'
        f"{command(plan)}\n"
    )


def ray_config(plan: StartPlan) -> dict[str, Any]:
    """serve.yaml: one application of ray.serve.llm, with vLLM's engine settings."""
    model: dict[str, Any] = {
        "model_loading_config": {"model_id": "base", "model_source": plan.base},
    }
    if plan.rank is None:
        model["model_loading_config"]["model_id"] = plan.names[0]
    else:
        count = len(plan.names)
        model["lora_config"] = {
            "dynamic_lora_loading_path": plan.cloud,
            "max_num_adapters_per_replica": count,
        }
        model["engine_kwargs"] = {
            "enable_lora": True,
            "max_lora_rank": plan.setting,
            "max_loras": count,
        }
    application = {
        "name": "lorica",
        "route_prefix": "/",
        "import_path": "ray.serve.llm:build_openai_app",
        "args": {"llm_configs": [model]},
    }
    return {"applications": [application]}


def _vllm(plan: StartPlan) -> str:
    template = "" if plan.template is None else f" \\\n  --chat-template {_place(plan.template)}"
    if plan.rank is None:
        name, model = _quoted(plan.names[0]), _place(plan.places[0])
        return f'exec vllm serve {model} --served-model-name {name} "$@"'
    count = len(plan.names)
    together = min(count, TOGETHER)
    if plan.stops is not None:
        template += f" \\\n  --generation-config {_place(plan.stops)}"
    return (
        f'{_base(plan)}exec vllm serve "$base" --enable-lora --max-lora-rank {plan.setting} '
        f"--max-loras {together} --max-cpu-loras {count} \\\n"
        f"  --lora-modules {_paths(plan)}{template} "
        '"$@"'
    )


def _sglang(plan: StartPlan) -> str:
    template = "" if plan.template is None else f" \\\n  --chat-template {_place(plan.template)}"
    start = "exec python -m sglang.launch_server"
    if plan.rank is None:
        name, model = _quoted(plan.names[0]), _place(plan.places[0])
        return f'{start} --model-path {model} --served-model-name {name} "$@"'
    return (
        f'{_base(plan)}{start} --model-path "$base" --enable-lora --max-lora-rank {plan.setting} '
        # One more than the adapters: the base takes a place of the batch too.
        f"\\\n  --max-loras-per-batch {min(len(plan.names), TOGETHER) + 1} \\\n"
        f"  --lora-paths {_paths(plan)}{template} "
        '"$@"'
    )


def _llamacpp(plan: StartPlan) -> str:
    template = ""
    if plan.template is not None:
        template = f" --jinja --chat-template-file {_place(plan.template)}"
    if plan.rank is None:
        name = _quoted(plan.names[0])
        model = _place(_inside(plan.places[0], "model.gguf"))
        return f'exec llama-server -m {model} --alias {name}{template} "$@"'
    loras = " ".join(f"--lora {_place(_inside(p, 'adapter.gguf'))}" for p in plan.places)
    how = f"lorica export {_quoted(plan.base)} --to llamacpp"
    return (
        f"# The first word is the base as GGUF: {_one_line(how)}\n"
        "base=${1:?usage: start.sh BASE.gguf [options of llama-server]}; shift\n"
        f'exec llama-server -m "$base" {loras}{template} "$@"'
    )


def _ray(plan: StartPlan) -> str:
    lines = []
    if plan.rank is not None:
        place = _one_line(str(plan.cloud))
        lines.append(f"# Put the adapter folders beside this file into {place} first.")
    return "\n".join([*lines, 'exec serve run "$here/serve.yaml" "$@"'])


COMMANDS: dict[str, Callable[[StartPlan], str]] = {
    "vllm": _vllm,
    "sglang": _sglang,
    "llamacpp": _llamacpp,
    "ray": _ray,
}


def _base(plan: StartPlan) -> str:
    """The line that takes the base from BASE in the environment, or where it was."""
    return f'base=${{BASE:-}}; [ -n "$base" ] || base={_quoted(plan.base)}\n'


def _paths(plan: StartPlan) -> str:
    """NAME=PLACE of each adapter."""
    pairs = zip(plan.names, plan.places, strict=True)
    return " ".join(f"{name}={_place(place)}" for name, place in pairs)


def _place(place: str) -> str:
    """A place in the export's folder, for the shell."""
    return '"$here"' if place == "." else f'"$here"/{shlex.quote(place)}'


def _inside(place: str, file: str) -> str:
    """A file in a place of the export."""
    return file if place == "." else f"{place}/{file}"


def _one_line(text: str) -> str:
    """Text of a comment: behind a line break, the shell would run it."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _quoted(text: str) -> str:
    return shlex.quote(text)
