"""``longtake check``: seams, loops, freezes, drift and flicker of a finished film, whoever made it.

    from longtake.video.check import check_film
    report = check_film("film.mp4")
    for one in report.findings:
        print(one.kind, one.start_s, one.text)

The names load their module on first use: `longtake --help` reads the command's line and nothing more.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longtake.video.check.finding import Finding, Kind, Verdict
    from longtake.video.check.report import Report, check_film, check_frames

__all__ = ["Finding", "Kind", "Report", "Verdict", "check_film", "check_frames"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'longtake.video.check' has no attribute {name!r}")
    module = "finding" if name in ("Finding", "Kind", "Verdict") else "report"
    return getattr(import_module(f"longtake.video.check.{module}"), name)
