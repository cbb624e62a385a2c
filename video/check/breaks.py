"""Places where a film breaks: cuts, seams, flashes, and freezes.

A step, from one frame to the next, is compared with the steps around it, four on either side (the idea of
PySceneDetect's adaptive detector): an action is fast over several frames, a join of two clips is one step among others
of its usual size. Four signals of a step, each over the largest of its neighbours:

  picture   mean change of the shrunk picture
  position  second difference of the 8 x 8 tile means, on both sides of the step: a jump of what moves smoothly
  motion    the same at one frame alone: what went one way goes another, though no picture jumps
  tone      the change that most tiles share: brightness or colour jumps, whatever moves

The limits lie between what clean films reach and what planted faults do, measured on 123 clean films (9 files of a
camera or a renderer, 144p to 1080p, 2 samples, 112 animations of 64 x 64; real cuts left out) and 104 planted ones; the
figures stand beside each, and `tests/benchmarks/check_films.py` prints them anew. Floors, in grey levels, keep noise of
a still picture from counting.
"""

from __future__ import annotations

import numpy as np
from longtake.video.check.curves import Curves
from longtake.video.check.finding import Finding, Kind, Verdict, place

AROUND = 4  # steps on either side that a step is compared with
LEAST = 2  # of them on the shorter side; the outermost steps of a film are not judged
# signal -> (ratio from which on it counts, floor of the step, floor of the neighbours)
LIMITS = {
    "picture": (2.6, 1.0, 0.35),  # clean 1.95, planted 2.2 to 17
    "position": (2.3, 1.25, 0.25),  # clean 1.91, planted 2.0 to 22
    "motion": (3.2, 1.0, 0.35),  # clean 2.58 (a gait at 12 fps), planted 3.7 and 3.9
    "tone": (5.0, 3.2, 0.30),  # clean 1.2, planted 11 to 78
}
WIDE = 0.5  # of a flash, the change of the median tile as a share of the whole: a blink changes few tiles
SHARED = (
    0.12  # of a jump of tone, what the tiles share of the whole change: planted 0.13 and more, a face that moves 0.10
)
FLASH, RETURNED = 2.6, 0.35  # of both steps; of a step, how far the frame after it may be from the one before
UNLIKE = 0.5  # correlation of luma below which two frames are unrelated: 5 cuts of a real film -0.23 to 0.20
UNLIKE_GROUND = 0.8  # of pictures that share a white ground: 0.63 to 0.73 at cuts
NEW_COLOURS = 1.5  # share of new colours over the neighbours' at such a cut; joins of one texture 0.6 to 1.1
NEW_COLOURS_GROUND = 2.0

# A still step, as a share of the film's usual change in the busiest tile, with the least and most grey levels of it.
# Compression lets a frozen picture move now and then: a run may hold steps up to the loose limit (planted up to 0.17).
STILL, STILL_LEAST, STILL_MOST = 0.12, 0.15, 1.5
LOOSE, LOOSE_MOST = 0.2, 4.0
STRICTLY = 0.6  # share of a run that is still by the first limit
STILL_STEPS = 5  # in a row: six frames that are the same
STILL_ENDS_S = 1.0  # a rest at the beginning or the end of a film is no fault before this


def find_breaks(curves: Curves) -> tuple[list[Finding], list[Verdict]]:
    """Cuts, seams and freezes, in order, and their verdicts."""
    freezes, longest = _freezes(curves)
    ratios = step_ratios(curves)
    found = _strongest([*_flashes(curves), *_jumps(curves, ratios)])
    found = [one for one in found if not _near(one.start, freezes)]
    need = 2 * LEAST + 2
    free = np.ones(max(curves.frames - 1, 0), bool)  # steps that are no finding
    for one in [*found, *freezes]:
        free[max(0, one.start - 3) : one.end + 2] = False
    rest = max(float(ratio[free].max(initial=0.0)) / LIMITS[name][0] for name, ratio in ratios.items())
    verdicts = []
    for kind in (Kind.CUT, Kind.SEAM):
        here = [one.number / one.limit for one in found if one.kind is kind]
        number = None if curves.frames < need else max(here, default=rest)
        verdicts.append(Verdict(kind, "", number, 1.0, "times its limit", len(here), need))
    still = None if curves.frames < STILL_STEPS + 1 else float(longest)
    verdicts.append(Verdict(Kind.FREEZE, "", still, STILL_STEPS, "still steps in a row", len(freezes), STILL_STEPS + 1))
    return sorted([*found, *freezes], key=lambda one: one.start), verdicts


def _near(frame: int, found: list[Finding]) -> bool:
    return any(one.start - 2 <= frame <= one.end + 2 for one in found)


def moving_steps(curves: Curves) -> np.ndarray:
    """Numbers of the steps that are not still: a film that shows each picture several times, or holds one, is compared
    as if it did not."""
    return np.flatnonzero(curves.busiest > still_limits(curves)[0])


def still_limits(curves: Curves) -> tuple[float, float]:
    """Grey levels of change in the busiest tile up to which a step is still, and up to which a still run may go on:
    shares of what is usual, the step such that half of all change happens in larger ones, so that repeats do not
    count."""
    change = np.sort(curves.busiest)
    sums = np.cumsum(change, dtype=np.float64)
    usual = float(change[np.searchsorted(sums, sums[-1] / 2)]) if len(change) else 0.0
    strict = float(np.clip(STILL * usual, STILL_LEAST, STILL_MOST))
    return strict, float(np.clip(LOOSE * usual, strict, LOOSE_MOST))


def step_ratios(curves: Curves) -> dict[str, np.ndarray]:
    """Each signal's (F - 1,) ratio to its neighbours, 0 where it is below its floor or too near to an end."""
    moving = moving_steps(curves)
    picture, bend, tone = _signals(curves, moving)
    ratios = {name: np.zeros(max(curves.frames - 1, 0)) for name in LIMITS}
    for n in range(LEAST, len(moving) - LEAST):
        t = moving[n]
        before, after = slice(max(0, n - AROUND), n), slice(n + 1, n + 1 + AROUND)
        for name, curve in (("picture", picture), ("tone", tone)):
            ratios[name][t] = _ratio(name, curve[n], curve[before], curve[after])
        # bend[n] lies between the steps n - 1 and n
        both, alone, earlier = min(bend[n], bend[n + 1]), bend[n], bend[max(1, n - AROUND) : n]
        ratios["position"][t] = _ratio("position", both, earlier, bend[n + 2 : n + 2 + AROUND])
        ratios["motion"][t] = _ratio("motion", alone, earlier, bend[n + 1 : n + 1 + AROUND])
    return ratios


def _signals(curves: Curves, moving: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per moving step the change of the picture and of the tone, and the bend of the tiles' path from the step before;
    a step over a gap of time that is longer than usual counts as so many steps."""
    longer = np.maximum(np.diff(curves.times) * curves.fps, 1.0)[moving]
    tiles = curves.tiles.reshape(curves.frames, -1)
    bend = np.zeros(len(moving) + 1)
    before = None
    for n, t in enumerate(moving):
        moved = (tiles[t + 1].astype(np.float32) - tiles[t]) / longer[n]
        if before is not None:
            bend[n] = np.abs(moved - before).mean()
        before = moved
    shared = np.abs(curves.tone[moving])
    tone = np.where(shared.mean(1) >= SHARED * curves.step[moving], shared.max(1, initial=0.0), 0.0)
    return curves.step[moving] / longer, bend, tone / longer


def _ratio(name: str, here: float, before: np.ndarray, after: np.ndarray) -> float:
    _, floor, least = LIMITS[name]
    if here < floor:
        return 0.0
    return float(here / max(before.max(initial=0.0), after.max(initial=0.0), least))


def _jumps(curves: Curves, ratios: dict[str, np.ndarray]) -> list[Finding]:
    found = []
    moving = moving_steps(curves)
    scores = {name: ratio / LIMITS[name][0] for name, ratio in ratios.items()}
    table = np.stack(list(scores.values())) if scores else np.zeros((0, 0))
    for t in np.flatnonzero(table.max(0, initial=0.0) >= 1.0):
        what = list(LIMITS)[int(table[:, t].argmax())]
        number, limit = float(ratios[what][t]), LIMITS[what][0]
        frame = int(t) if what == "motion" else int(t) + 1
        if _is_cut(curves, moving, int(t), scores["tone"][t] >= 1.0, what):
            text = (
                f"another scene: {number:.1f} times the steps around, likeness of the frames {curves.likeness[t]:.2f}"
            )
            found.append(place(curves, Kind.CUT, "", (frame, frame), number, limit, text))
        else:
            found.append(place(curves, Kind.SEAM, what, (frame, frame), number, limit, _words(what, number)))
    return found


def _words(what: str, number: float) -> str:
    told = {
        "picture": "the picture changes {} times as much as in the steps around",
        "position": "what moves jumps, {} times as far from its path as around",
        "motion": "the motion turns, {} times as sharply as around",
        "tone": "brightness or colour jumps, {} times the steps around",
    }
    return told[what].format(f"{number:.1f}")


def _is_cut(curves: Curves, moving: np.ndarray, t: int, tone_jumps: bool, what: str) -> bool:
    """Whether the step leads to another scene. What looks alike on both sides (one texture, one white ground with
    another figure of the same colours) cannot be told from a jump, and is called a seam."""
    if what == "motion":
        return False
    n = int(np.searchsorted(moving, t))
    around = curves.palette[np.r_[moving[max(0, n - AROUND) : n], moving[n + 1 : n + 1 + AROUND]]]
    fresh = curves.palette[t] / max(float(around.max(initial=0.0)), 0.01)
    if curves.likeness[t] < UNLIKE:
        return bool(fresh >= NEW_COLOURS)
    return bool(curves.likeness[t] < UNLIKE_GROUND and fresh >= NEW_COLOURS_GROUND and not tone_jumps)


def _flashes(curves: Curves) -> list[Finding]:
    """Single frames that differ from both neighbours, which are alike."""
    found = []
    step, tiles = curves.step, curves.tiles
    _, floor, least = LIMITS["picture"]
    for t in range(LEAST, len(step) - LEAST):  # frame t, between steps t - 1 and t
        pair = float(min(step[t - 1], step[t]))
        around = np.r_[step[max(0, t - 1 - AROUND) : t - 1], step[t + 1 : t + 1 + AROUND]]
        number = pair / max(float(around.max(initial=0.0)), least)
        if pair < floor or number < FLASH:
            continue
        three = tiles[t - 1 : t + 2].astype(np.float32)
        across = float(np.abs(three[2] - three[0]).mean())
        most = min(float(np.median(np.abs(three[1] - other))) for other in (three[0], three[2]))
        if across <= RETURNED * pair and most >= max(floor, WIDE * pair):  # a blink changes few tiles
            text = f"one frame flashes: {number:.1f} times the steps around, and back"
            found.append(place(curves, Kind.SEAM, "flash", (t, t), number, FLASH, text))
    return found


def _strongest(found: list[Finding]) -> list[Finding]:
    """Of findings within two frames of each other the strongest; a flash comes before the steps to it and from it."""
    ranked = sorted(found, key=lambda one: (one.what != "flash", -one.number / one.limit))
    kept: list[Finding] = []
    for one in ranked:
        if all(abs(one.start - other.start) > 2 for other in kept):
            kept.append(one)
    return sorted(kept, key=lambda one: one.start)


def _freezes(curves: Curves) -> tuple[list[Finding], int]:
    """Runs of still steps, and the longest run. A picture that the file shows for as long as many frames counts as so
    many; repeats that a film is made of (12 pictures shown as 24 frames) do not count."""
    gaps = np.maximum(1, np.rint(np.diff(curves.times) * curves.fps)).astype(int)
    limit, loose = still_limits(curves)
    runs: list[tuple[int, int, int]] = []  # first frame, last frame, still steps
    start, steps, strict = 0, 0, 0

    def close(last: int) -> None:
        if steps and strict >= STRICTLY * steps:
            runs.append((start, last, steps))

    for t, busiest in enumerate(curves.busiest):
        held = int(gaps[t]) - 1  # the picture before a long gap stands until the next one comes
        if busiest <= limit or (busiest <= loose and steps):
            steps += 1 + held
            strict += held + (busiest <= limit)
            continue
        steps, strict = steps + held, strict + held
        close(t)
        start, steps, strict = t + 1, 0, 0
    close(curves.frames - 1)
    least = STILL_STEPS
    if len(runs) >= 5 and sum(run[2] for run in runs) >= 0.3 * gaps.sum():
        least = max(least, 2 * int(np.median([run[2] for run in runs])) + 1)
    found = []
    for first, last, still in runs:
        at_end = first == 0 or last == curves.frames - 1
        whole = first == 0 and last == curves.frames - 1
        if still >= least and (not at_end or whole or still >= STILL_ENDS_S * curves.fps):
            text = f"the picture stands still for {still + 1} frames ({(still + 1) / curves.fps:.2f} s)"
            found.append(place(curves, Kind.FREEZE, "", (first, last), still, least, text))
    inner = [run[2] for run in runs if run[0] > 0 and run[1] < curves.frames - 1]
    return found, max([*inner, *(int(one.number) for one in found)], default=0)
