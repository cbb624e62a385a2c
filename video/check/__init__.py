"""``longtake check``: seams, loops, freezes, drift and flicker of a finished film, whoever made it.

from longtake.video.check import check_film
report = check_film("film.mp4")
for one in report.findings:
    print(one.kind, one.start_s, one.text)
"""

from longtake.video.check.finding import Finding, Kind, Verdict
from longtake.video.check.report import Report, check_film, check_frames

__all__ = ["Finding", "Kind", "Report", "Verdict", "check_film", "check_frames"]
