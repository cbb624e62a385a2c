"""longtake: long takes from short-clip generators.

The public names below load their module on first use, so that `import longtake` costs next to nothing.

    import longtake
    longtake.Timeline.parse("0s: a person walks | 4s: a person jumps", fps=24)
"""

from importlib import import_module
from typing import Any

# Public name -> the module that defines it. A domain appears here by name only and is imported when asked for.
_PUBLIC = {
    "Timeline": "longtake.timeline",
    "UserError": "longtake.errors",
    "RankFailure": "longtake.errors",
    "Journal": "longtake.journal",
    "Output": "longtake.outputs",
    "VideoOutput": "longtake.outputs",
    "VideoWriter": "longtake.media",
    "LongTakePipeline": "longtake.pipeline",
    "LongVideoPipeline": "longtake.video.pipeline",
    "LongMotionPipeline": "longtake.motion.pipeline",
    "LongSpeechPipeline": "longtake.speech.pipeline",
    "LongitudinalPipeline": "longtake.medical.pipeline",
    "WatchPipeline": "longtake.video.watch.pipeline",
    "MDM": "longtake.motion.model",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("longtake")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'longtake' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
