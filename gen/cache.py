"""What is kept between runs of a user: indices of films, vectors of texts. All of it can be made again.

folder = cache_folder("watch")      # ~/.cache/longtake/watch; LONGTAKE_CACHE names another place
"""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """The folder of one kind of things: in LONGTAKE_CACHE, else in longtake of the user's cache. It may not exist."""
    ours = os.environ.get("LONGTAKE_CACHE")
    if ours:
        return Path(ours) / name
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "longtake" / name
