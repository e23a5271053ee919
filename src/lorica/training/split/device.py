"""The device's side of the split: a base of which only the embedding and the output head are here.

The other layers are hollow: they have shapes, so that adapters can be built, and no memory. A call
of the decoder goes to the cloud, which asks back at every active layer.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from lorica import plain_files
from lorica.base.describe import locate
from lorica.base.fingerprint import Fingerprint, fingerprint
from lorica.base.load import LoadedModel, load_tokenizer
from lorica.core.bank import attached
from lorica.errors import BaseError, ConfigError, FileError, listed
from lorica.training.split.connection import DEVICE, Connection


class RemoteBlocks(torch.autograd.Function):
    """The blocks on the cloud, as one function of the embedded rows and of the adapters here."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, embedded: Tensor, trained: Tensor, device: "Device", inputs: dict[str, Any]
    ) -> Tensor:
        """trained: a tensor that requires gradients, so that the result does too."""
        ctx.device = device
        return device.forward(embedded, inputs, learning=True)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple:  # type: ignore[override]
        ctx.device.backward(gradient)
        return None, None, None, None


class Device:
    """Runs the adapters of `model` for the cloud.

    active: layers whose adapters take part; the others send nothing and add nothing.
    sent: bytes of tensors in both directions, by layer; "ends" are the embedded rows and hidden
    states. pending: (input, update) of each layer until the backward pass.
    """

    def __init__(self, model: nn.Module, connection: Connection):
        self.model, self.connection = model, connection
        self.decoder: Any = model.base_model
        self.adapters: dict[str, Any] = {}
        self.active: set[str] = set()
        self.sent: Counter[str] = Counter()
        self.pending: dict[str, tuple[Tensor, Tensor]] = {}

    def use_adapters(self) -> None:
        """Answer the cloud with the adapters that are on the model now."""
        self.adapters = attached(self.model, "default").adapters
        self.active |= self.adapters.keys()

    def take_sent_bytes(self) -> int:
        """Bytes sent in both directions since the last call; the count starts anew."""
        total = self.sent.total()
        self.sent.clear()
        return total

    @torch.no_grad()
    def settle(self) -> list[str]:
        """Zero the adapters that are not active at the end, so that the file adds nothing either.

        In place. Returns: notices.
        """
        inactive = [site for site in self.adapters if site not in self.active]
        for site in inactive:
            self.adapters[site].get_parameter("b").zero_()
        if not inactive:
            return []
        share = f"{len(inactive)} of {len(self.adapters)} layers"
        return [f"{share} were not active at the end; the adapter omits them: {listed(inactive)}"]

    def close(self) -> None:
        """Tell the cloud that the run has ended."""
        self.connection.send("end")
        self.connection.close()

    def decode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        row_lengths: list[int] | None = None,
        **_: Any,
    ) -> Any:
        """The forward pass of the decoder, whose blocks are on the cloud."""
        from transformers.modeling_outputs import BaseModelOutputWithPast

        inputs = {
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "lengths": row_lengths,
        }
        embedded = self.decoder.get_input_embeddings()(input_ids)
        trained = [p for a in self.adapters.values() for p in a.parameters() if p.requires_grad]
        if torch.is_grad_enabled() and trained:
            hidden: Any = RemoteBlocks.apply(embedded, trained[0], self, inputs)
        else:
            hidden = self.forward(embedded, inputs, learning=False)
        return BaseModelOutputWithPast(last_hidden_state=hidden)

    def forward(self, embedded: Tensor, inputs: dict[str, Any], *, learning: bool) -> Tensor:
        """(B, T, d) embedded rows to (B, T, d) hidden states, with the updates of `active`."""
        self.pending.clear()
        note = {"active": sorted(self.active), "learning": learning, "lengths": inputs["lengths"]}
        tensors = {
            k: inputs[k] for k in ("attention_mask", "position_ids") if inputs[k] is not None
        }
        self.connection.send("forward", note, inputs_embeds=embedded, **tensors)
        while True:
            kind, site, tensors = self.connection.receive()
            if kind == "hidden":
                self.sent["ends"] += embedded.nbytes + tensors["hidden"].nbytes
                return tensors["hidden"].to(embedded)
            x = tensors["x"].requires_grad_(learning)
            with torch.set_grad_enabled(learning):
                zeros = x.new_zeros(*x.shape[:-1], self._out_features(site))
                update = self.adapters[site].after(x, zeros, _no_base)
            self.pending[site] = x, update
            self.sent[site] += x.nbytes + update.nbytes
            self.connection.send("update", site, update=update)

    @torch.enable_grad()
    def backward(self, gradient: Tensor) -> None:
        """Gradients of every active adapter, from (B, T, d) that of the hidden states. In place."""
        self.connection.send("backward", gradient=gradient)
        self.sent["ends"] += gradient.nbytes
        while True:
            kind, site, tensors = self.connection.receive()
            if kind == "done":
                self.pending.clear()
                return
            x, update = self.pending.pop(site)
            torch.autograd.backward(update, tensors["gradient"].to(update))
            assert x.grad is not None
            self.sent[site] += tensors["gradient"].nbytes + x.grad.nbytes
            self.connection.send("gradient of x", site, x=x.grad)

    def _out_features(self, site: str) -> int:
        return self.model.get_submodule(site).adapters.out_features  # type: ignore[return-value, union-attr]


def _no_base(x: Tensor) -> Tensor:
    raise ConfigError(
        "this method calls the frozen layer, which is on the cloud.",
        fix="use method lora for a split run",
    )


def connect(path: str, dtype: torch.dtype, peer: str) -> tuple[LoadedModel, Device]:
    """The base of a split run as the device sees it, connected to its cloud.

    path: the folder of the base; only its embedding and head are read. peer: HOST:PORT.
    Raises: BaseError, FileError if that is not possible; TrainingError without a cloud.
    """
    folder = Path(locate(path))
    if not folder.is_dir():
        raise BaseError(
            f"the device reads its embedding from a folder, and {path} is none.",
            fix="copy the base's config, tokenizer, embedding and head to it",
        )
    model = _hollow_model(folder, dtype)
    tokenizer = load_tokenizer(path)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    connection = Connection(DEVICE, peer)
    _, facts, _ = connection.receive()
    fingerprints = {kind: Fingerprint(**fields) for kind, fields in facts.items()}
    cloud = fingerprints["rounded"]
    if cloud.shapes != fingerprint(model, hashing=None).shapes:
        connection.send("end")
        raise BaseError(
            f"the cloud's base, {cloud.path}, has other shapes than {path}.",
            fix="name the same base on both sides",
        )
    model.stands_for = fingerprints
    base = LoadedModel(model.eval(), tokenizer, path)
    base.notices.append(
        "split run: hidden states leave this machine, and text can be reconstructed from them; "
        "rows, labels, adapters and their gradients stay here"
    )
    device = Device(model, connection)
    model.base_model.forward = device.decode  # the hollow blocks are never run
    return base, device


def _hollow_model(folder: Path, dtype: torch.dtype) -> Any:
    """The model in `folder` with its embedding and head; other weights are one shared zero each."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    model.tie_weights()
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    read_ids = {id(p) for layer in ends if layer is not None for p in layer.parameters()}
    copies: dict[int, nn.Parameter] = {}  # tied parameters stay tied
    for name, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in copies:
                if id(parameter) in read_ids:
                    tensor = _read_tensor(folder, f"{name}.{key}").to(dtype)
                else:
                    tensor = torch.zeros((), dtype=dtype).expand(parameter.shape)
                copies[id(parameter)] = nn.Parameter(tensor, requires_grad=False)
            module._parameters[key] = copies[id(parameter)]
        for key, buffer in module._buffers.items():
            module._buffers[key] = None if buffer is None else torch.zeros(buffer.shape)
    return model


def _read_tensor(folder: Path, name: str) -> Tensor:
    for file in sorted(folder.glob("*.safetensors")):
        plain_files.is_file(file)
        with safe_open(file, framework="pt") as tensors:
            if name in tensors.keys():  # noqa: SIM118
                return tensors.get_tensor(name)
    raise FileError(
        f"{folder} has no tensor {name}.", fix="copy the base's embedding and head here"
    )
