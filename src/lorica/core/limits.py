"""Limits of r and alpha at a site: a larger value is a typing error, or an attack on memory."""

from lorica.core.adapter import Method
from lorica.core.bounds import check_rank
from lorica.core.site import Site
from lorica.errors import ConfigError

MAX_ALPHA = 1e9
"""A larger scale would exceed the range of float32 beside the weights of a layer."""


def check_sizes(method: Method, site: Site) -> None:
    """Raises: ConfigError if r is larger than the layer allows, or alpha than MAX_ALPHA."""
    settings = vars(method)
    r, alpha = settings.get("r"), settings.get("alpha")
    if type(r) is int:
        check_rank(method.name, r, site.name, site.in_features, site.out_features)
    if isinstance(alpha, int | float) and abs(alpha) > MAX_ALPHA:
        raise ConfigError(f"{method.name}.alpha is {alpha:.4g}.", fix="give it at most 1e9")
