"""The long-form engine with a voice whose every sample is known."""

import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from longtake.distributed import Ranks
from longtake.errors import UserError
from longtake.journal import Journal
from longtake.speech.backends.voice import Utterance
from longtake.speech.longform.engine import LongForm
from longtake.speech.longform.pieces import PAUSES_S, Memory, OnDisk, Piece, joined
from longtake.speech.text.script import Writer
from ranks import run_ranks
from speech_voice import RATE, Toy

TEXT = (
    "Good evening, said the captain. Was that a question? It was not a question at all, he said, and went home.\n\n"
    "The second paragraph begins here. It has another sentence, which is somewhat longer than the first one was."
)


def engine(**settings) -> LongForm:
    return LongForm(settings.pop("voice", None) or Toy(), Writer("words"), **settings)


def sound(form: LongForm, text=TEXT, seed: int = 1, store=None) -> np.ndarray:
    return np.concatenate([packet.samples for packet in form.stream(text, seed, store)])


def test_the_same_seed_gives_the_same_bytes_and_another_does_not() -> None:
    """C6."""
    assert np.array_equal(sound(engine()), sound(engine()))
    assert not np.array_equal(sound(engine()), sound(engine(), seed=2))


def test_a_change_in_the_middle_leaves_what_came_before() -> None:
    """C6."""
    one = list(engine().pieces(TEXT, 1))
    two = list(engine().pieces(TEXT.replace("second", "other"), 1))
    same = [np.array_equal(a.samples, b.samples) for a, b in zip(one, two, strict=True)]
    assert same.count(False) == 1 and same[: same.index(False)] == [True] * same.index(False)


def test_every_phone_is_said_once_and_in_order() -> None:
    """C2."""
    voice = Toy()
    sound(engine(voice=voice))
    expected = [unit.phones for sentence in Writer("words").sentences(TEXT) for unit in sentence.units]
    assert voice.said == expected


def test_packets_are_the_whole_take_and_words_stand_in_it() -> None:
    """C4."""
    packets = list(engine().stream(TEXT, 1))
    whole = np.concatenate([packet.samples for packet in packets])
    pieces = list(engine().pieces(TEXT, 1))
    assert np.array_equal(whole, np.concatenate(list(joined(pieces, RATE))))
    words = [word for packet in packets for word in packet.words]
    starts = [word.start for word in words]
    assert starts == sorted(starts) and words[-1].end <= len(whole)
    for word in words:
        assert np.abs(whole[word.start : word.end]).max() > 0.1
        assert (
            np.square(whole[word.start - 100 : word.start - 20]).mean()
            < 1e-3 * np.square(whole[word.start : word.end]).mean()
        )


def test_the_sound_begins_before_the_text_has_ended_and_costs_the_same_for_any_length() -> None:
    """C4."""
    given = []

    def pieces():
        for number in range(1000):
            given.append(number)
            yield "The old captain answered the telephone again. "

    assert len(next(engine().stream(pieces(), 1)).samples) and len(given) < 5
    voices = Toy(), Toy()
    for voice, times in zip(voices, (3, 3000), strict=True):
        next(engine(voice=voice).stream("The old captain answered the telephone again. " * times, 1))
    assert voices[0].calls == voices[1].calls == 1


def test_pauses_are_as_asked_to_the_sample() -> None:
    """C8: a break to within a hop, here exact."""
    text = (
        '<speak><p>One thing here.</p><p>And <break time="730ms"/> another thing of the same kind. '
        "Well then, once more and again.</p></speak>"
    )
    packets = list(engine().stream(text, 1))
    words = [word for packet in packets for word in packet.words]
    gaps = {two.text: two.start - one.end for one, two in zip(words, words[1:], strict=False)}
    assert gaps["another"] == round(0.73 * RATE)
    assert gaps["And"] == round(PAUSES_S["paragraph"] * RATE) and gaps["Well"] == round(PAUSES_S["sentence"] * RATE)
    (first, *_) = engine().stream("[pause:2s] Hello there my friends.", 1)
    assert first.words[0].start == 2 * RATE + 640
    half = [word for packet in engine(pauses=0.5).stream(text, 1) for word in packet.words]
    assert half[3].start - half[2].end == round(PAUSES_S["paragraph"] * RATE / 2)


def test_prosody_voice_and_mark_have_their_effect() -> None:
    """C8."""

    def words(inside: str):
        packets = list(engine().stream(f"<speak>{inside}</speak>", 1))
        whole = np.concatenate([packet.samples for packet in packets])
        return whole, [word for packet in packets for word in packet.words]

    _, (a, b) = words("stone <prosody rate='50%'>stone</prosody>")
    assert b.end - b.start == 2 * (a.end - a.start)
    whole, (a, b) = words("stone <prosody pitch='+12st'>stone</prosody>")
    assert _peak(whole[b.start : b.end]) > 1.5 * _peak(whole[a.start : a.end])
    whole, (a, b) = words("stone <voice name='high'>stone</voice>")
    assert _peak(whole[b.start : b.end]) > 1.5 * _peak(whole[a.start : a.end])
    _, (_, mark, b) = words("stone <mark name='here'/>stone")
    assert mark.mark and mark.text == "here" and mark.start == b.start


def _peak(samples: np.ndarray) -> int:
    return int(np.abs(np.fft.rfft(samples, 4096)).argmax())


def test_joins_are_no_louder_a_jump_than_speech_itself() -> None:
    """C5."""
    text = "word " * 1500
    form, starts = engine(), []
    whole = np.concatenate(list(joined(form.pieces(text, 1), RATE, lambda piece, start: starts.append(start))))
    jumps = np.abs(np.diff(whole))
    assert len(starts) > 2
    inside = np.quantile(jumps, 0.99)
    assert max(jumps[start - 1 : start + 2].max() for start in starts[1:]) <= inside


def test_a_carried_voice_changes_less_at_the_joins() -> None:
    """C5: level of the last word before and the first word after each join."""

    def step(carry: str) -> float:
        pieces = list(engine(carry=carry).pieces(TEXT, 1))
        levels = [
            [np.sqrt(np.square(piece.samples[w.start : w.end]).mean()) for w in (piece.words[0], piece.words[-1])]
            for piece in pieces
        ]
        return float(np.mean([abs(a[1] - b[0]) for a, b in zip(levels, levels[1:], strict=False)]))

    assert step("tail") < step("none")


def test_what_a_voice_cannot_is_refused_by_name() -> None:
    dumb = {"rate": False, "pitch": False, "within": False, "carries": False}
    voice = Toy((), **dumb)
    for text, what in (
        ("<speak><prosody rate='2'>a</prosody></speak>", "rate of single words"),
        ("<speak><prosody pitch='+1st'>a</prosody></speak>", "pitch of single words"),
        ("<speak><voice name='x'>a</voice></speak>", "no speaker 'x'"),
    ):
        with pytest.raises(UserError, match=f"voice Toy .*{what}"):
            sound(engine(voice=voice), text)
    for settings in ({"carry": "tail"}, {"asked": Utterance((), rate=2.0)}, {"asked": Utterance((), pitch=1.0)},
                     {"asked": Utterance((), speaker="x")}, {"carry": "x"}):  # fmt: skip
        with pytest.raises(UserError):
            engine(voice=voice, **settings)


@pytest.mark.parametrize("text", ["", " \n", "...", "😀😀", "مرحبا", "<speak/>"])
def test_a_text_without_words_is_one_line(text: str) -> None:
    """C9."""
    with pytest.raises(UserError, match="nothing to say"):
        sound(engine(), text)


@pytest.mark.parametrize("text", ["I", "[[ə]]", "x" * 5000, "word " * 1000, "Hi 😀 мир there", "?! Hi"])
def test_odd_texts_are_said(text: str) -> None:
    """C9."""
    made = sound(engine(), text)
    assert np.isfinite(made).all() and len(made) > 100


def test_a_kept_run_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    """C3: stopped after each chunk in turn, in both carries."""
    for carry in ("none", "tail"):
        expected = sound(engine(carry=carry))
        for stop in range(1, 4):
            folder = tmp_path / f"{carry}{stop}"
            with Journal(folder) as journal:
                journal.open({}, "resume")
                done, total = engine(carry=carry).make(
                    TEXT, 1, OnDisk(journal), None, lambda done, of, s=stop: done >= s
                )
                assert done == stop < total
                voice = Toy()
                done, _ = engine(carry=carry, voice=voice).make(TEXT, 1, OnDisk(journal))
                assert done == total and voice.calls == total - stop
                assert np.array_equal(sound(engine(carry=carry), store=OnDisk(journal)), expected)


def test_a_damaged_piece_is_made_again(tmp_path: Path) -> None:
    with Journal(tmp_path / "run") as journal:
        journal.open({}, "resume")
        store = OnDisk(journal)
        engine().make(TEXT, 1, store)
        path = sorted((tmp_path / "run").glob("chunk*"))[1]
        path.write_bytes(path.read_bytes()[:100])
        assert np.array_equal(sound(engine(), store=store), sound(engine()))


def test_a_redone_sentence_has_the_same_joins_and_leaves_the_others(tmp_path: Path) -> None:
    for carry in ("none", "tail"):
        store = Memory()
        engine(carry=carry).make(TEXT, 1, store)
        before = [store.get(n) for n in range(4)]
        redone = engine(carry=carry, redo={1: 1})
        redone.make(TEXT, 1, store)
        after = [store.get(n) for n in range(4)]
        same = [np.array_equal(a.samples, b.samples) for a, b in zip(before, after, strict=True)]
        assert same == [True, False, True, True]
        gaps = [
            [two.start - one.end for one, two in zip(words, words[1:], strict=False)]
            for words in (_words(before), _words(after))
        ]
        assert gaps[0] == gaps[1]


def _words(pieces: list[Piece]):
    words = []

    def place(piece, start):
        words.extend(type(word)(word.text, word.start + start, word.end + start) for word in piece.words)

    list(joined(pieces, RATE, place))
    return words


class Slow(Toy):
    def say(self, asked, state=None):
        time.sleep(0.01)
        return super().say(asked, state)


def work(folder: Path, text: str) -> None:
    with Journal(folder) as journal:
        journal.open({}, "resume")
        engine(voice=Slow(), carry="tail").make(text, 1, OnDisk(journal))


def test_killed_at_any_instant_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """C3: ten kills, in the middle of writing too."""
    text, folder = TEXT * 8, tmp_path / "run"
    draw = np.random.default_rng(0)
    for number in range(10):
        running = multiprocessing.get_context("fork").Process(target=work, args=(folder, text))
        running.start()
        deadline = time.monotonic() + 300
        while len(list(folder.glob("chunk*"))) < 3 * (number + 1) and running.is_alive():
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(0.02 * draw.random())
        running.kill()
        running.join()
    assert len(list(folder.glob("chunk*"))) >= 30
    with Journal(folder) as journal:
        journal.open({}, "resume")
        expected = sound(engine(carry="tail"), text)
        assert np.array_equal(sound(engine(carry="tail"), text, store=OnDisk(journal)), expected)
        assert not [name for name in os.listdir(journal.folder) if name.endswith(".partial")]


def shared(rank: int, world: int, folder: str | None) -> list[float]:
    from longtake.distributed import Ranks, setup

    ranks = setup() if world > 1 else Ranks.single()
    journal = Journal(folder) if folder else None
    if journal and rank == 0:
        journal.open({}, "resume")
    ranks.barrier()
    store = OnDisk(journal) if journal else Memory()
    form = LongForm(Toy(), Writer("words"))
    done, total = form.make(TEXT, 1, store, ranks)
    made = sound(form, store=store)
    assert done == total
    return [len(made), float(np.abs(made).sum()), form.voice.calls]


@pytest.mark.distributed
@pytest.mark.parametrize("on_disk", [False, True])
def test_any_number_of_ranks_makes_the_same_take(tmp_path: Path, on_disk: bool) -> None:
    alone = sound(engine())
    for world in (2, 3):
        results = run_ranks(shared, world, str(tmp_path / f"run{world}") if on_disk else None)
        assert {(length, total) for length, total, _ in results} == {(len(alone), float(np.abs(alone).sum()))}
        calls = [calls for *_, calls in results]
        assert sum(calls) == sum(1 for _ in engine().chunks(TEXT)) and max(calls) - min(calls) <= 1


def test_a_carried_take_is_refused_on_several_ranks() -> None:
    ranks = Ranks.single()
    ranks.world = 3
    with pytest.raises(UserError, match="carry none"):
        engine(carry="tail").make(TEXT, 1, Memory(), ranks)


def test_pace_and_pitch_do_not_drift_over_half_an_hour() -> None:
    """C7, with the toy voice: words a minute under 1 % in 10 minutes; its level, which is drawn by chance, under 5."""
    text = "The old captain answered the telephone, and the committee finished the report in the garden. " * 700
    form, counts, levels, at = engine(), {}, {}, 0
    for packet in form.stream(text, 1):
        for word in packet.words:
            minute = word.start // (60 * RATE)
            counts[minute] = counts.get(minute, 0) + 1
        levels.setdefault(packet.start // (60 * RATE), []).append(float(np.square(packet.samples).mean()))
        at = packet.start + len(packet.samples)
    minutes = at // (60 * RATE)
    assert minutes >= 30
    for most, values in (
        (0.01, [counts[n] for n in range(minutes)]),
        (0.05, [np.mean(levels[n]) for n in range(minutes)]),
    ):
        slope = np.polyfit(np.arange(minutes), values, 1)[0] * 10 / np.mean(values)
        assert abs(slope) < most


MEMORY = """
import sys, resource, time
sys.path.insert(0, {tests!r})
from longtake.speech.longform.engine import LongForm
from longtake.speech.longform.writer import AudioWriter
from longtake.speech.text.script import Writer
from speech_voice import Toy, RATE
from pathlib import Path
import soundfile
minutes, path = float(sys.argv[1]), Path(sys.argv[2])
def text():
    while True:
        yield "The old captain answered the telephone, and the committee finished the report in the garden. "
form = LongForm(Toy(), Writer("words"), carry="tail")
times, length = [], 0
with AudioWriter(path, RATE) as file:
    start = time.process_time()
    for packet in form.stream(text(), 1):
        file.write(packet.samples)
        length += len(packet.samples)
        times.append(time.process_time() - start)
        start = time.process_time()
        if length > minutes * 60 * RATE:
            break
tenth = len(times) // 10
parts = times[:tenth], times[-tenth:]
# a growing cost is in every packet, what other processes do to the caches only in some
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, *[sorted(part)[tenth // 10] for part in parts])
"""


def test_an_hour_takes_no_more_memory_than_minutes_and_does_not_slow_down(tmp_path: Path) -> None:
    """C1, with the toy voice: the engine, the writer and the text side."""
    code = MEMORY.format(tests=str(Path(__file__).parents[2]))
    told = []
    for minutes in (6, 60):
        words = [sys.executable, "-c", code, str(minutes), str(tmp_path / f"{minutes}.wav")]
        run = subprocess.run(words, capture_output=True, text=True, check=True)
        told.append([float(word) for word in run.stdout.split()])
    assert (told[1][0] - told[0][0]) / 1024 < 48
    assert told[1][2] <= 1.15 * told[1][1] + 0.0005
