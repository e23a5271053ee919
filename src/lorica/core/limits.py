"""Limits of r and alpha at a site: a larger value is a typing error, or an attack on memory."""

from lorica.core.adapter import Method
from lorica.core.site import Site
from lorica.errors import ConfigError

MAX_RANK = 4096
"""Ranks up to this are accepted on any layer (VeRA's default is 256, on small layers too)."""
MAX_ALPHA = 1e9
"""A larger scale would exceed the range of float32 beside the weights of a layer."""


def check_sizes(method: Method, site: Site) -> None:
    """Raises: ConfigError if r is larger than the layer allows, or alpha than MAX_ALPHA."""
    settings = vars(method)
    r, alpha = settings.get("r"), settings.get("alpha")
    most = max(MAX_RANK, site.in_features + site.out_features)
    if type(r) is int and r > most:
        raise ConfigError(
            f"{method.name}.r is {r:.4g}, and {site.name} has {site.in_features} inputs and "
            f"{site.out_features} outputs.",
            fix=f"give it an r of at most {most}",
        )
    if isinstance(alpha, int | float) and abs(alpha) > MAX_ALPHA:
        raise ConfigError(f"{method.name}.alpha is {alpha:.4g}.", fix="give it at most 1e9")
