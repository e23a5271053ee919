"""lorica combine: a weighted sum of adapters, as a plain LoRA."""

from typing import Annotated, Literal

from cyclopts import App, Parameter, validators

from lorica.cli.options import AllowBase, BaseLocation, Json, OutputFolder, Texts, print_json
from lorica.errors import ConfigError

app = App(name="combine", usage="Usage: lorica combine A=0.5 B=0.5 --output FOLDER [OPTIONS]")


@app.default
def combine(
    *parts: Annotated[str, Parameter(allow_leading_hyphen=True)],
    output: OutputFolder,
    method: Literal["linear", "svd", "cat", "ties", "dare_ties", "dare_linear"] = "linear",
    rank: int | None = None,
    density: float = 0.5,
    seed: Annotated[int, Parameter(validator=validators.Number(gte=0, lt=2**32))] = 0,
    base: BaseLocation = None,
    probe: Texts = None,
    allow_base: AllowBase = None,
    json: Json = False,
) -> None:
    """Combine adapters of one base into one: a weighted sum of their changes, as a plain LoRA.

    Parameters
    ----------
    parts
        Runs or adapters, each with its weight: runs/a=0.7 runs/b=0.3. A weight below 0 takes away.
    method
        linear: the sum, exact if every part is a LoRA. svd: cut to --rank, by default the largest
        of the parts. cat: the factors side by side. ties, dare_ties, dare_linear: see the guide.
    rank
        The largest rank of a layer. Without it, the sum is exact or refused.
    density
        The share of each change that ties keeps and dare draws, above 0 and at most 1.
    seed
        Of what dare draws.
    probe
        Text to measure the difference on, besides the built-in ones; may be given several times.
    """
    from lorica.formats.combine import combine as combine_adapters

    report = combine_adapters(
        [parse_part(part) for part in parts],
        output,
        method=method,
        rank=rank,
        density=density,
        seed=seed,
        base=base,
        allow_base=allow_base,
        probe=probe,
    )
    if json:
        print_json(report.as_dict())
        return
    print(*report.notices, f"the LoRA is in {output}", sep="\n")


def parse_part(text: str) -> tuple[str, float]:
    """(path, weight) of "path=0.5". Raises: ConfigError."""
    path, equals, weight = text.rpartition("=")
    try:
        if equals and path:
            return path, float(weight)
    except ValueError:
        pass
    raise ConfigError(f"{text!r} is not an adapter with its weight.", fix="write runs/mine=0.5")
