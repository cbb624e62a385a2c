"""Progress of a run: a bar on a terminal, a plain line every few seconds in a log.

with Progress("denoising") as progress:
    progress.at(3, 16)
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

LINE_SECONDS = 5.0  # between two lines where there is no terminal


class Progress:
    """Tells on standard error how far a run is. Leaving the block ends the bar, so that what is said next stands on a
    line of its own. visible: False tells nothing."""

    def __init__(self, what: str, visible: bool = True, unit: str = "step") -> None:
        self.what, self.visible, self.unit = what, visible, unit
        self.is_terminal = sys.stderr.isatty()
        self._bar: Any = None
        self._started = self._told = time.monotonic()
        self._first: tuple[int, float] | None = None  # units done and seconds of the clock when the first was told

    def at(self, done: int, of: int) -> None:
        """``done`` of ``of`` units are done."""
        if not self.visible:
            return
        if self.is_terminal:
            if self._bar is None:
                from tqdm import tqdm

                self._bar = tqdm(total=of, desc=self.what, unit=self.unit, mininterval=0.2, file=sys.stderr)
            self._bar.update(done - self._bar.n)
            return
        now = time.monotonic()
        spent = now - self._started
        if self._first is None:  # a resumed run begins in the middle
            self._first = done, now
        if now - self._told >= LINE_SECONDS or done == of:
            # the first unit waits for weights and compilers: those after it say how fast it goes
            made, took = done - self._first[0], now - self._first[1]
            each = took / made if made > 0 else spent
            left = "" if done == of or made < 0 else f", about {each * (of - done):.0f} s left"
            print(f"{self.what}: {self.unit} {done} of {of}, {spent:.0f} s{left}", file=sys.stderr, flush=True)
            self._told = now

    def say(self, text: str) -> None:
        """A line between the bar's."""
        if not self.visible:
            return
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the bar's line."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
