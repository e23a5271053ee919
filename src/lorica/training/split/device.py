"""The device's side of the split: a base of which only embedding and output head are here.

The other layers are hollow: they have their shapes, so that adapters can be built, and no
memory. The decoder's call goes to the cloud, which asks back at every active site.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from lorica import plain_files
from lorica.base.fingerprint import Fingerprint, fingerprint
from lorica.base.load import LoadedModel, load_tokenizer, where
from lorica.core.bank import attached
from lorica.errors import BaseError, ConfigError, FileError, listed
from lorica.training.split.wire import DEVICE, Wire


class Trunk(torch.autograd.Function):
    """The blocks on the cloud, as one function of the embedded rows and the adapters here."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, embedded: Tensor, one: Tensor, device: "Device", given: dict[str, Any]
    ) -> Tensor:
        ctx.device = device
        return device.forward(embedded, given, learning=True)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple:  # type: ignore[override]
        ctx.device.backward(gradient)
        return None, None, None, None


class Device:
    """The adapters of `model`, answering for the cloud.

    active: sites that take part; the others send nothing and add nothing.
    ledger: bytes of tensors by site over both directions, and of the rows' ends ("ends").
    """

    def __init__(self, model: nn.Module, wire: Wire):
        self.model, self.wire = model, wire
        self.decoder: Any = model.base_model
        self.active: set[str] = set()
        self.ledger: Counter[str] = Counter()
        self.held: dict[str, tuple[Tensor, Tensor]] = {}
        self.decoder.forward = self._decode  # the hollow blocks are never run

    def use_adapters(self) -> None:
        """Answer the cloud with the adapters that are on the model now."""
        self.adapters = attached(self.model, "default").adapters
        self.active |= self.adapters.keys()

    def take_sent_bytes(self) -> int:
        """Bytes sent in both directions since the last call; the count starts anew."""
        total = self.ledger.total()
        self.ledger.clear()
        return total

    @torch.no_grad()
    def settle(self) -> list[str]:
        """At the end of a run: adapters that do not take part add nothing in the file either."""
        resting = [site for site in self.adapters if site not in self.active]
        for site in resting:
            self.adapters[site].get_parameter("b").zero_()
        if not resting:
            return []
        many = f"{len(resting)} of {len(self.adapters)}"
        return [
            f"{many} sites took no part at the end; their updates are left out: {listed(resting)}"
        ]

    def close(self) -> None:
        """Tell the cloud that the run has ended."""
        self.wire.send("end")
        self.wire.close()

    def _decode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        row_lengths: list[int] | None = None,
        **_: Any,
    ) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPast

        given = {
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "lengths": row_lengths,
        }
        embedded = self.decoder.get_input_embeddings()(input_ids)
        learned = [p for a in self.adapters.values() for p in a.parameters() if p.requires_grad]
        if torch.is_grad_enabled() and learned:
            hidden: Any = Trunk.apply(embedded, learned[0], self, given)
        else:
            hidden = self.forward(embedded, given, learning=False)
        return BaseModelOutputWithPast(last_hidden_state=hidden)

    def forward(self, embedded: Tensor, given: dict[str, Any], *, learning: bool) -> Tensor:
        """(B, T, d) embedded rows to (B, T, d) hidden states, with the updates of `active`."""
        self.held.clear()
        note = {"active": sorted(self.active), "learning": learning, "lengths": given["lengths"]}
        places = {k: given[k] for k in ("attention_mask", "position_ids") if given[k] is not None}
        self.wire.send("forward", note, inputs_embeds=embedded, **places)
        while True:
            kind, site, tensors = self.wire.receive()
            if kind == "hidden":
                self.ledger["ends"] += embedded.nbytes + tensors["hidden"].nbytes
                return tensors["hidden"].to(embedded)
            x = tensors["x"].requires_grad_(learning)
            with torch.set_grad_enabled(learning):
                nothing = x.new_zeros(*x.shape[:-1], self._width(site))
                update = self.adapters[site].after(x, nothing, _no_base)
            self.held[site] = x, update
            self.ledger[site] += x.nbytes + update.nbytes
            self.wire.send("update", site, update=update)

    @torch.enable_grad()
    def backward(self, gradient: Tensor) -> None:
        """Gradients of every active adapter, from (B, T, d) that of the hidden states. In place."""
        self.wire.send("backward", gradient=gradient)
        self.ledger["ends"] += gradient.nbytes
        while True:
            kind, site, tensors = self.wire.receive()
            if kind == "done":
                self.held.clear()
                return
            x, update = self.held.pop(site)
            torch.autograd.backward(update, tensors["gradient"].to(update))
            assert x.grad is not None
            self.ledger[site] += tensors["gradient"].nbytes + x.grad.nbytes
            self.wire.send("gradient of x", site, x=x.grad)

    def _width(self, site: str) -> int:
        return self.model.get_submodule(site).adapters.out_features  # type: ignore[return-value, union-attr]


def _no_base(x: Tensor) -> Tensor:
    raise ConfigError(
        "this method calls the frozen layer, which is on the cloud.",
        fix="a split run takes method lora",
    )


def connect(path: str, dtype: torch.dtype, peer: str) -> tuple[LoadedModel, Device]:
    """The base of a split run as the device sees it, connected to its cloud.

    path: the folder of the base; its embedding and head are read here, and nothing else.
    Raises: BaseError, FileError if that cannot be; TrainingError without a cloud.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = where(path)
    if not Path(folder).is_dir():
        raise BaseError(
            f"the device reads its embedding from a folder, and {path} is none.",
            fix="copy the base's config, tokenizer, embedding and head to it",
        )
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    model.tie_weights()
    own = [model.get_input_embeddings(), model.get_output_embeddings()]
    here = {id(p) for layer in own if layer is not None for p in layer.parameters()}
    done: dict[int, nn.Parameter] = {}
    for name, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                if id(parameter) not in done:
                    full = f"{name}.{key}"
                    tensor = (
                        _read(Path(folder), full).to(dtype)
                        if id(parameter) in here
                        else (torch.zeros((), dtype=dtype).expand(parameter.shape))
                    )
                    done[id(parameter)] = nn.Parameter(tensor, requires_grad=False)
                module._parameters[key] = done[id(parameter)]
        for key, buffer in module._buffers.items():
            module._buffers[key] = None if buffer is None else torch.zeros(buffer.shape)
    tokenizer = load_tokenizer(path)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    wire = Wire(DEVICE, peer)
    _, said, _ = wire.receive()
    stands_for = {kind: Fingerprint(**one) for kind, one in said.items()}
    theirs, mine = stands_for["rounded"], fingerprint(model, hashing=None)
    if theirs.shapes != mine.shapes:
        wire.send("end")
        raise BaseError(
            f"the cloud's base, {theirs.path}, has other shapes than {path}.",
            fix="name the same base on both sides",
        )
    model.stands_for = stands_for
    base = LoadedModel(model.eval(), tokenizer, path)
    base.notices.append(
        "split run: hidden states leave this machine, and words can be read from "
        "them; rows, labels, adapters and their gradients do not"
    )
    return base, Device(model, wire)


def _read(folder: Path, name: str) -> Tensor:
    for file in sorted(folder.glob("*.safetensors")):
        plain_files.is_file(file)
        with safe_open(file, framework="pt") as tensors:
            if name in tensors.keys():  # noqa: SIM118
                return tensors.get_tensor(name)
    raise FileError(
        f"{folder} has no tensor {name}.", fix="copy the base's embedding and head here"
    )
