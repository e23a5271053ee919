"""lorica key: a new API key for a tenant of `lorica serve`, and its lines of keys.yaml."""

import sys
from typing import Annotated

from cyclopts import App, Parameter

from lorica.cli.options import Switch, Texts

app = App(name="key")


@app.default
def make(
    tenant: str,
    /,
    *,
    adapter: Annotated[
        Texts, Parameter(help='Adapter that it may use; "*": all, and not the base.')
    ] = None,
    base: Annotated[Switch, Parameter(help="It may use the base without an adapter.")] = False,
    admin: Annotated[Switch, Parameter(help="It may load and unload adapters.")] = False,
) -> None:
    """Make a random API key, and the lines of keys.yaml for the tenant that has it.

    The lines go to stdout and hold a hash of the key. The key itself goes to stderr, once, and is
    stored nowhere: lorica key acme --adapter alice >> keys.yaml

    Parameters
    ----------
    tenant
        Name of the customer, for quotas, metrics and the log.
    """
    from lorica.serve.keys_file import new_entry

    key, lines = new_entry(tenant, adapters=adapter or (), base=base, admin=admin)
    print(f"key of {tenant}; it is not stored, and cannot be shown again:", file=sys.stderr)
    print(f"  {key}\nlines for keys.yaml:", file=sys.stderr, flush=True)
    print(lines, end="")
