"""Default learning rates of a method, and the rate of each trained tensor.

The best rate differs by factors of ten to a hundred between methods, and between small and large
bases. For AdamW `Method.rates` therefore has two: the best one on a base of hidden size 64
(stories260K, docs/methods/results.md), and a published one for hidden size 4096, a model of 7B
(`Method.rate_source` names the source). Between the two sizes the rate is a power of the hidden
size; beyond them it is constant. tinker-cookbook (hyperparam_utils.py, 9dfcc3a) fits LoRA's best
rate for Llamas by such a power: 7.4e-3 at hidden size 64 and 2.9e-4 at 4096.

For SGD there is one rate, from short runs at hidden size 64: clipping bounds the length of an SGD
step at any size. It makes SGD's steps about as long as AdamW's, which are the rate times the root
of the number of trained parameters.
"""

from torch import nn

from lorica.core.adapter import Method
from lorica.core.bank import attached
from lorica.core.rate_by_size import rate_by_size


def default_rate(method: Method, optimizer: str, hidden_size: int | None) -> float:
    """The peak rate of a method where none is given; see `rate_by_size`."""
    return rate_by_size(method.rates, optimizer, hidden_size, method.rate_factor)


def rates_of(model: nn.Module, rate: float, name: str = "default") -> dict[str, float]:
    """The peak rate of every trained tensor of adapter `name`, by its name in adapter_state.

    rate: of the run. Layers and token rows that are trained whole have it unchanged.
    """
    adapter = attached(model, name)
    rates: dict[str, float] = {}
    for site, module in adapter.every.items():
        kind, whole = adapter.sites[site].kind, site in adapter.whole
        for key, _ in module.named_parameters():
            own = adapter.method.learning_rate(key.rpartition(".")[2], rate, kind)
            rates[f"{site}.{key}"] = rate if whole else own
    return rates
