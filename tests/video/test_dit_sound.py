"""LTX-2: video and sound over ranks, cut by the same seconds (D7)."""

import math
import warnings

import pytest
import torch
from dit_models import call_of, make
from longtake.errors import UserError
from longtake.kernels.partition import Partition
from longtake.video.dit.scopes import Moment, see
from longtake.video.parallelize import parallelize
from longtake.video.scope import Scope
from ranks import run_ranks
from torch.overrides import TorchFunctionMode

TOLERANCE = 1e-5
FRAMES, TOKENS = 7, 16
NARROW = Scope(window=1, global_frames=2, gate="off")
CUTS = {1: [[7]], 2: [[1, 6]], 3: [[5, 0, 2], [2, 2, 3]]}
KINDS = ("ltx2", "ltx2.3")
SDPA = torch.nn.functional.scaled_dot_product_attention


def seconds_of(audio):
    """Which frame each audio token's middle lies in, by the arithmetic of the VAEs: 8 frames of film a latent frame at
    24 fps but for the first, 4 mel hops of 10 ms an audio latent but for the first."""
    frame = []
    for token in range(audio):
        start, end = (max(4 * at + 1 - 4, 0) * 0.01 for at in (token, token + 1))
        middle = (start + end) / 2
        ends = [(1 + 8 * f) / 24 for f in range(FRAMES)]
        frame.append(next((f for f, end in enumerate(ends) if middle < end), FRAMES - 1))
    return torch.tensor(frame)


class Dense(TorchFunctionMode):
    """Masked dense attention over both streams; text attention has keys of neither length."""

    def __init__(self, score, audio):
        super().__init__()
        video = torch.arange(FRAMES).repeat_interleave(TOKENS)
        self.frames = {len(video): video, audio: seconds_of(audio)}
        self.score = score
        self.calls = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is not SDPA:
            return function(*args, **(kwargs or {}))
        return self.attention(*args, **(kwargs or {}))

    def attention(self, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **_):
        rows, keys = self.frames.get(query.shape[2]), self.frames.get(key.shape[2])
        if rows is None or keys is None:
            return SDPA(query, key, value, attn_mask=attn_mask, scale=scale)
        self.calls += 1
        logits = query.double() @ key.double().mT / math.sqrt(query.shape[-1]) + self.score[rows][:, keys]
        return (logits.softmax(-1).nan_to_num(0.0) @ value.double()).float()


def run(model, given):
    with torch.no_grad():
        out = model(**given)
    return out.sample, out.audio_sample


def compare(rank, world):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    worst = {}
    for kind in KINDS:
        model, given = make(kind), call_of(kind, FRAMES)
        audio = given["audio_hidden_states"].shape[1]
        for scope in (None, NARROW):
            if scope is None:
                wanted = run(model, given)
            else:
                with Dense(see(scope, Moment(FRAMES)).score, audio) as dense:
                    wanted = run(model, given)
                assert dense.calls == 8
            for sizes in CUTS[world]:
                shown = Scope(FRAMES, 0, gate="off") if scope is None else scope
                with parallelize(model, Partition.from_sizes(sizes), shown, whole=True):
                    made = run(model, given)
                for name, a, b in zip(("video", "audio"), made, wanted, strict=True):
                    assert a.shape == b.shape
                    key = f"{kind} {name} {'all' if scope is None else 'scope'}"
                    worst[key] = max(worst.get(key, 0.0), (a - b).abs().max().item())
    return worst


@pytest.mark.distributed
@pytest.mark.parametrize("world", [1, 2, 3])
def test_d7_video_and_sound_are_cut_by_seconds_for_any_ranks(world):
    for worst in run_ranks(compare, world):
        assert len(worst) == 8 and max(worst.values()) <= TOLERANCE, worst


def test_d7_sound_hears_only_the_frames_in_scope():
    model, given = make("ltx2"), call_of("ltx2", FRAMES)
    alone = Scope(window=0, global_frames=0, gate="off")
    other = dict(given)
    other["hidden_states"] = given["hidden_states"].clone()
    other["hidden_states"][:, 5 * TOKENS : 6 * TOKENS] += 1  # frame 5
    with parallelize(model, Partition.even(FRAMES, 1), alone, whole=True):
        before, after = run(model, given), run(model, other)
    moved = (before[1] - after[1]).abs().amax((0, 2)) > 1e-6
    frame = seconds_of(given["audio_hidden_states"].shape[1])
    assert torch.equal(moved, frame == 5)


def test_d7_ltx2_refuses_what_is_not_exact():
    model, given = make("ltx2"), call_of("ltx2", FRAMES)
    with pytest.raises(UserError, match="riflex does not fit"):
        with parallelize(model, Partition.even(FRAMES, 1), NARROW, whole=True, positions="riflex"):
            run(model, given)
    mask = torch.ones(2, FRAMES * TOKENS, FRAMES * TOKENS)
    with parallelize(model, Partition.even(FRAMES, 1), NARROW, whole=True):
        with pytest.raises(UserError, match="video_self_attention_mask"):
            run(model, {**given, "video_self_attention_mask": mask})


# ---- MiniMax-H3: one packed row -------------------------------------------------------------------------------------


class Packed(TorchFunctionMode):
    """Masked dense attention where rows of the video are known by their place in the packed row."""

    def __init__(self, score, video, tokens):
        super().__init__()
        self.score, self.video, self.tokens = score, video, tokens
        self.calls = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is not SDPA:
            return function(*args, **(kwargs or {}))
        return self.attention(*args, **(kwargs or {}))

    def attention(self, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **_):
        if query.shape[2] <= len(self.video):  # the refiner of the text
            return SDPA(query, key, value, scale=scale)
        self.calls += 1
        frame = torch.full((query.shape[2],), -1)
        frame[self.video] = torch.arange(len(self.video)) // self.tokens
        bias = torch.zeros(query.shape[2], query.shape[2], dtype=torch.float64)
        film = frame >= 0
        bias[film[:, None] & film[None, :]] = self.score[frame[film]][:, frame[film]].flatten()
        logits = query.double() @ key.double().mT / math.sqrt(query.shape[-1]) + bias
        return (logits.softmax(-1) @ value.double()).float()


def compare_packed(rank, world):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    model, given, worst = make("minimax"), call_of("minimax", FRAMES), {}
    for scope in (None, NARROW):
        if scope is None:
            wanted = run(model, given)
        else:
            with Packed(see(scope, Moment(FRAMES)).score, given["video_indices"], 4) as dense:
                wanted = run(model, given)
            assert dense.calls == 2
        for sizes in CUTS[world]:
            shown = Scope(FRAMES, 0, gate="off") if scope is None else scope
            with parallelize(model, Partition.from_sizes(sizes), shown, whole=True) as handle:
                handle.set_through(True)
                made = run(model, given)
            for name, a, b in zip(("video", "audio"), made, wanted, strict=True):
                assert a.shape == b.shape
                worst[f"{name} {scope is None} {sizes}"] = (a - b).abs().max().item()
    return worst


@pytest.mark.distributed
@pytest.mark.parametrize("world", [1, 2, 3])
def test_d2_minimax_packed_rows_for_any_ranks(world):
    for worst in run_ranks(compare_packed, world):
        assert max(worst.values()) <= TOLERANCE, worst


def test_minimax_refuses_rows_that_are_no_frames():
    model, given = make("minimax"), call_of("minimax", FRAMES)
    with pytest.raises(UserError, match="are not 6 frames one after the other: conditioning rows"):
        with parallelize(model, Partition.even(6, 1), NARROW, whole=True):
            run(model, given)
    with pytest.raises(UserError, match="positions=clip is not written for MiniMax-H3"):
        with parallelize(model, Partition.even(FRAMES, 1), NARROW, whole=True, positions="clip"):
            run(model, given)
