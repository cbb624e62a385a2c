"""Alignments are the best ones there are: each search equals the enumeration of all paths."""

import itertools

import numpy as np
import pytest
import torch
from longtake.errors import UserError
from longtake.speech.alignment import BLANK, AlignmentTooShort, ctc_align, durations, project, search, spans
from speech_goldens import Golden


def steps_of(path, symbols):
    assert path[0] == 0 and path[-1] == symbols - 1
    assert set((path[1:] - path[:-1]).tolist()) <= {0, 1}


def monotone_paths(symbols, frames):
    """All labels of ``frames`` that give every symbol at least one."""
    for cuts in itertools.combinations(range(1, frames), symbols - 1):
        yield np.searchsorted(cuts, np.arange(frames), side="right")


def by_rows(scores):
    """The search written out, one cell after the other."""
    symbols, frames = scores.shape
    value = np.full((symbols, frames), -np.inf)
    value[0, 0] = scores[0, 0]
    for t in range(1, frames):
        for s in range(symbols):
            value[s, t] = scores[s, t] + max(value[s, t - 1], value[s - 1, t - 1] if s else -np.inf)
    path, s = np.zeros(frames, int), symbols - 1
    for t in range(frames - 1, -1, -1):
        path[t] = s
        if t and s and (s == t or value[s, t - 1] < value[s - 1, t - 1]):
            s -= 1
    return path


def test_a10_the_search_equals_brute_force():
    rng = np.random.default_rng(0)
    for _ in range(200):
        symbols = int(rng.integers(1, 6))
        scores = rng.standard_normal((symbols, int(rng.integers(symbols, 9))))
        best = max(monotone_paths(*scores.shape), key=lambda path: scores[path, np.arange(scores.shape[1])].sum())
        assert search(torch.from_numpy(scores)).argmax(0).tolist() == best.tolist()


def test_a10_the_search_equals_a_plain_dynamic_programme_on_larger_ones():
    rng = np.random.default_rng(1)
    for _ in range(50):
        symbols = int(rng.integers(5, 40))
        scores = rng.standard_normal((symbols, int(rng.integers(symbols, 120)))).round(1)
        assert search(torch.from_numpy(scores)).argmax(0).tolist() == by_rows(scores).tolist()


@pytest.mark.parametrize("name", ["0", "1", "2", "3", "4", "5", "_ties"])
def test_s5_the_search_chooses_what_the_public_code_does(name):
    golden = Golden("S5_alignment_search")
    scores = golden.given(f"scores{name}")
    scores = scores.round() if name == "_ties" else scores
    assert np.array_equal(search(scores).argmax(0).numpy(), golden.arrays[f"path{name}"])


def test_s5_a_ragged_batch_chooses_what_the_public_code_does():
    golden = Golden("S5_alignment_search")
    entry = golden.meta["inputs"]["scores_batch"]
    texts, frames = torch.tensor(entry["text_lengths"]), torch.tensor(entry["frame_lengths"])
    assert np.array_equal(search(golden.given("scores_batch"), texts, frames).numpy(), golden.arrays["path_batch"])


def ctc_brute_force(emissions, targets, blank=0):
    best = -np.inf
    for path in itertools.product(range(emissions.shape[1]), repeat=len(emissions)):
        read = [symbol for symbol, _ in itertools.groupby(path) if symbol != blank]
        if read == list(targets):
            best = max(best, sum(emissions[t, s] for t, s in enumerate(path)))
    return best


def test_a10_forced_alignment_equals_enumeration():
    rng = np.random.default_rng(2)
    for _ in range(200):
        frames, vocabulary = int(rng.integers(1, 7)), int(rng.integers(2, 4))
        targets = rng.integers(1, vocabulary, size=int(rng.integers(0, 4))).tolist()
        emissions = torch.from_numpy(rng.standard_normal((frames, vocabulary))).log_softmax(1)
        best = ctc_brute_force(emissions.numpy(), targets)
        if best == -np.inf:
            with pytest.raises(AlignmentTooShort):
                ctc_align(emissions, targets)
            continue
        path, score = ctc_align(emissions, targets)
        assert score == pytest.approx(best, abs=1e-12)
        read = [0 if at == BLANK else targets[at] for at in path.tolist()]
        assert sum(emissions[t, s].item() for t, s in enumerate(read)) == pytest.approx(best, abs=1e-12)
        assert [key for key, _ in itertools.groupby(path.tolist()) if key != BLANK] == list(range(len(targets)))


def test_forced_alignment_equals_torchaudio():
    from torchaudio.functional import forced_align

    torch.manual_seed(0)
    emissions = torch.randn(60, 9).log_softmax(1)
    targets = [3, 3, 1, 8, 2, 2, 2, 5]
    path, score = ctc_align(emissions, targets)
    theirs, scores = forced_align(emissions[None], torch.tensor([targets]))
    assert [0 if at == BLANK else targets[at] for at in path.tolist()] == theirs[0].tolist()
    assert score == pytest.approx(float(scores.double().sum()), abs=1e-4)
    found = spans(path, len(targets))
    assert bool((found[1:, 0] >= found[:-1, 1]).all()) and bool((found[:, 1] > found[:, 0]).all())


def test_a_symbol_outside_of_the_vocabulary_is_refused():
    emissions = torch.zeros(4, 3)
    for wrong in (0, 3, -1):
        with pytest.raises(UserError, match=f"got {wrong}"):
            ctc_align(emissions, [1, wrong])


def test_a10_projection_gives_every_phoneme_a_frame():
    rng = np.random.default_rng(3)
    for case in range(1000):
        symbols = int(rng.integers(1, 30))
        lengths = rng.exponential(1.2, symbols)
        times = np.concatenate([[0.0], lengths.cumsum()])
        frames = max(symbols, int(np.ceil(times[-1])))
        path = project(times[:-1], times[1:], frames)
        steps_of(path, symbols)
        assert len(path) == frames and int(durations(path, symbols).min()) >= 1
        if symbols <= 4 and frames <= 9 and case % 3 == 0:
            left = np.arange(frames)
            overlap = (np.minimum(times[1:, None], left + 1) - np.maximum(times[:-1, None], left)).clip(min=0)
            best = max(overlap[each, left].sum() for each in monotone_paths(symbols, frames))
            assert overlap[path.numpy(), left].sum() == pytest.approx(best, abs=1e-12)


def test_too_few_frames_are_refused_with_the_numbers():
    with pytest.raises(AlignmentTooShort, match="3 symbols need at least as many frames, got 2"):
        project([0, 1, 2], [1, 2, 3], 2)
    with pytest.raises(AlignmentTooShort, match="3 symbols need at least as many frames, got 2"):
        search(torch.zeros(3, 2))
    with pytest.raises(UserError, match="finite"):
        project([0.0], [float("nan")], 2)
