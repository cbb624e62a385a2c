"""What the launchers' environment says of this process, without torch."""

import os


def rank() -> int:
    """RANK, or 0."""
    return int(os.environ.get("RANK") or 0)


def world() -> int:
    """WORLD_SIZE, or 1."""
    return int(os.environ.get("WORLD_SIZE") or 1)
