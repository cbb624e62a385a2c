"""What a prior is asked to make when it is judged: which corpus it is of, and the subjects and texts that it names.

corpus = corpus_of(folder, None)                  # "kaykit": the prior says so, or its known texts show it
asked = Catalogue.of(load_clips(data, corpus), known_texts(folder))
asked.named["knight walk"]                        # "a knight walks"
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from longtake.errors import UserError
from longtake.priors import KNOWS, known_texts
from longtake.reading import read_json
from longtake.video.data import UNSAID, Clip, Corpus
from longtake.video.metrics import motion
from longtake.video.subjects import SUBJECTS

ABOUT = "prior.json"  # beside a prior's weights: facts of its training


@dataclass(frozen=True)
class Catalogue:
    """Prompts by subject.

    named: what the prior says that it knows (of a prior that says nothing: all of its corpus). unseen: what it was
    never trained on, ``unseen_label`` says in which way. looping: the subjects among ``named`` whose real clips are
    loops and lively, fit for long films; all others where there are none.
    """

    named: dict[str, str]
    unseen: dict[str, str]
    unseen_label: str
    looping: tuple[str, ...]

    @classmethod
    def of(cls, clips: Sequence[Clip], knows: Sequence[str]) -> Catalogue:
        """The catalogue of a corpus's clips and the texts that a prior knows (none: it does not say).

        Raises UserError when the prior knows none of the clips' captions.
        """
        kaykit = any(clip.character for clip in clips)
        every: dict[str, str] = {}
        unseen: dict[str, str] = {}
        for clip in clips:
            if kaykit and clip.view != UNSAID:
                continue
            text = clip.caption if kaykit else SUBJECTS[clip.subject].captions[0]
            (unseen if kaykit and clip.held_out else every).setdefault(clip.subject, text)
        named = {subject: text for subject, text in every.items() if not knows or text in set(knows)}
        if not named:
            raise UserError(
                f"the prior's {KNOWS} names none of the {len(every)} captions of these "
                f"{'KayKit' if kaykit else 'emoji'} clips: say with --corpus which ones it was trained on"
            )
        if not kaykit:
            unseen = {subject: SUBJECTS[subject].held_out[0] for subject in named}
        loops = _lively([clip for clip in clips if clip.loops])
        looping = tuple(subject for subject in named if subject in loops) or tuple(named)
        return cls(named, unseen, "pairs never seen" if kaykit else "wordings never seen", looping)


def _lively(loops: Sequence[Clip]) -> set[str]:
    """The subjects of those clips that move at least as much as half of them do: who sits or stands says nothing of how
    a long film keeps its pace."""
    if not loops:
        return set()
    moved = np.array([motion(clip.frames) for clip in loops])
    return {clip.subject for clip, moves in zip(loops, moved >= np.median(moved), strict=True) if moves}


def corpus_of(folder: Path, given: str | None) -> str | None:
    """The corpus of a prior: the given one, else what the prior's facts say, else what its known texts show.

    None: nothing tells. Raises UserError for facts that name a corpus there is not.
    """
    if given is not None:
        return given
    file = folder / ABOUT
    if file.is_file():
        facts = read_json(file)
        told = facts.get("corpus") if isinstance(facts, dict) else None
        if told is not None:
            if told not in list(Corpus):
                raise UserError(f"{file} names the corpus {told!r}; known are {', '.join(Corpus)}")
            return str(told)
    knows = known_texts(folder)
    if not knows:
        return None
    emoji = {caption for subject in SUBJECTS.values() for caption in subject.captions}
    return Corpus.EMOJI if emoji & set(knows) else Corpus.KAYKIT
