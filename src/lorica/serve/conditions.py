"""Which conditions of a conditioned adapter can be asked for, as "alias:condition"."""

from collections.abc import Sequence

from lorica.errors import ConfigError
from lorica.formats.adapter_file import AdapterFile
from lorica.methods.hyperlora import Hyperlora
from lorica.methods.hyperlora.conditions import check_known, parse_embedding


def conditions_of(file: AdapterFile, asked: Sequence[str] = ()) -> tuple[str, ...]:
    """The conditions to serve of `file`; () if its update depends on none.

    asked: those that the operator names; (): all that it was trained on.
    Raises: ConfigError if it was not trained on one of them, or none is known.
    """
    method, asked = file.spec.method, tuple(dict.fromkeys(asked))
    if not isinstance(method, Hyperlora):
        if asked:
            raise ConfigError(
                f"{file.folder} is an adapter of method {method.name}, which has no conditions.",
                fix="leave its conditions out",
            )
        return ()
    if method.condition != "embedding":
        check_known(asked, method.conditions)
        return asked or method.conditions
    if not asked:
        raise ConfigError(
            f"{file.folder} takes any embedding as condition, and none is named.",
            fix="name those to serve, each a list of numbers",
        )
    for condition in asked:
        parse_embedding(condition, method.width)
    return asked
