"""lorica diff: how far two adapters of one base are apart."""

from typing import TYPE_CHECKING

from cyclopts import App

from lorica.cli.options import AllowBase, BaseLocation, Json, Texts, print_json

if TYPE_CHECKING:
    from lorica.formats.difference import AdapterDifference

app = App(name="diff")
SHOWN = 8
"""Layers that are listed."""


@app.default
def diff(
    first: str,
    second: str,
    /,
    *,
    base: BaseLocation = None,
    probe: Texts = None,
    allow_base: AllowBase = None,
    json: Json = False,
) -> None:
    """Compare two adapters of one base: are they the same, and which layers are far apart.

    Exit status 0: they are the same up to rounding; 1: they are not.

    Parameters
    ----------
    first
        A run or an adapter.
    second
        Another one.
    probe
        Text to compare the predictions on, besides the built-in ones; may be given several times.
    """
    from lorica.formats.difference import difference

    report = difference(first, second, base=base, probe=probe, allow_base=allow_base)
    if json:
        print_json(report.as_dict())
    else:
        print(*report.notices, *lines(report), sep="\n")
    raise SystemExit(0 if report.same else 1)


def lines(report: "AdapterDifference") -> list[str]:
    """The report in words: the layers that are farthest apart first."""
    same = "are the same up to rounding" if report.same else "differ"
    head = (
        f"{report.first} ({report.methods[0]}) and {report.second} ({report.methods[1]}) {same}: "
        f"logits by up to {report.max_difference:.3g}, KL {report.kl:.3g} nats a token, on "
        f"{report.tokens} probe tokens"
    )
    if report.others:
        head += f"; {len(report.others)} sites are no weights, and only in the logits"
    if report.same or not report.layers:
        return [head]
    order = sorted(report.layers, key=lambda name: -report.layers[name].distance)
    width = max(len(name) for name in order[:SHOWN])
    rows = [f"{'layer':<{width}}  distance  cosine  change of the first  of the second"]
    for name in order[:SHOWN]:
        layer = report.layers[name]
        cosine = "" if layer.cosine is None else f"{layer.cosine:.3f}"
        rows.append(
            f"{name:<{width}}  {layer.distance:>8.3f}  {cosine:>6}  {layer.first:>19.4g}  "
            f"{layer.second:>13.4g}"
        )
    if len(order) > SHOWN:
        rows.append(f"... and {len(order) - SHOWN} more (--json has all)")
    return [head, "", *rows, "", "distance: of the changes of the weight, over the larger change"]
