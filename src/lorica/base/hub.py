"""Whether the hub can be reached for a model id: one request, with a short timeout.

huggingface_hub tries each file of an unreachable hub six times, for half a minute. One request
decides instead: a hub that does not answer is replaced by the copy in its cache, or refused.
"""

from functools import cache
from pathlib import Path

from lorica.errors import BaseError

SECONDS = 10.0
"""How long the hub may take for its answer."""


@cache
def reachable_or_cached(repo: str) -> str:
    """`repo` itself if the hub answers; else the folder of its newest copy in the cache.

    Raises: BaseError if the hub does not answer and the cache has no copy.
    """
    from huggingface_hub import get_session, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        get_session().head(hf_hub_url(repo, "config.json"), timeout=SECONDS)
    except HFValidationError:
        raise BaseError(
            f"{repo!r} is neither a folder here nor a model id of the hub.",
            fix="check the path; a model id is owner/name",
        ) from None
    except Exception as error:  # httpx's or httpx2's, as huggingface_hub's release has it
        cached = try_to_load_from_cache(repo, "config.json")
        if isinstance(cached, str):
            return str(Path(cached).parent)
        why = str(error).strip().partition("\n")[0] or type(error).__name__
        raise BaseError(
            f"{repo!r} is not a folder here, and the hub cannot be reached.",
            why=why,
            fix="check the path, or the network; a base that was downloaded before is used offline",
        ) from None
    return repo
