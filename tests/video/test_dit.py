"""One adapter for all video transformers: stock where it should be, the definition elsewhere, for any ranks."""

import functools
import warnings

import pytest
import torch
from dit_models import FRAME_AXIS, KINDS, call_of, make, run
from dit_reference import Dense
from longtake.kernels.partition import Partition
from longtake.kernels.ranks.transport import DryTransport
from longtake.video.dit.scopes import BlockCausal, Both, Decay, Moment, RotatingAnchors, Sinks, see
from longtake.video.parallelize import parallelize
from longtake.video.scope import Scope
from ranks import run_ranks

TOLERANCE = 1e-5
FRAMES = 7
UNEVEN = {1: [[7]], 2: [[1, 6]], 3: [[5, 0, 2], [2, 2, 3]]}
NARROW = Scope(window=1, global_frames=3, gate="off")
SOFT = Scope(window=1, global_frames=2, gate="soft", bias=1.5, row_scale=3)


def tokens_of(kind):
    return 16 if kind in ("ltx", "hunyuan15") else 4


def causal_of(kind):
    return BlockCausal(3) if kind.endswith("causal") else None


def frames_of(kind):
    return 6 if kind == "skyreels-causal" else FRAMES


@functools.cache
def wanted_of(kind, scope):
    """What ``compare`` is to find, worked out once for all ranks and worlds: stock (None) or the reference."""
    model, given = make(kind), call_of(kind, frames_of(kind))
    return run(model, given) if scope is None else reference(kind, model, given, scope, frames_of(kind))


def compared(world, kinds, scopes):
    """``compare`` on all ranks."""
    wanted = {(kind, number): wanted_of(kind, scope) for kind in kinds for number, scope in enumerate(scopes)}
    return run_ranks(compare, world, kinds, scopes, wanted)


def compare(rank, world, kinds, scopes, wanted):
    """Largest difference to what is wanted by kind and number of the scope, over cuts; whole inputs."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    worst = {}
    for kind in kinds:
        model = make(kind)
        frames = frames_of(kind)
        given = call_of(kind, frames)
        for number, scope in enumerate(scopes):
            cuts = UNEVEN[world] if frames == FRAMES else [list(Partition.even(frames, world).sizes)]
            for sizes in cuts:
                with parallelize(model, Partition.from_sizes(sizes), scope, whole=True) as handle:
                    handle.set_timestep(500.0)
                    handle.set_through(True)  # not by torch's stock call, also where it would do
                    out = run(model, given)
                right = wanted[kind, number]
                assert out.shape == right.shape
                worst[kind, number] = max(worst.get((kind, number), 0.0), (out - right).abs().max().item())
    return worst


def reference(kind, model, given, scope, frames):
    moment = Moment(frames, 500.0, 0)
    own = causal_of(kind)
    sight = see(scope if own is None else Both(own, scope), moment)
    first = kind.startswith(("cogvideox", "consisid"))
    with Dense(sight.score, tokens_of(kind), first, sight.factors, sight.decay) as dense:
        if own is not None:
            model.register_to_config(num_frame_per_block=1)
        out = run(model, given)
        if own is not None:
            model.register_to_config(num_frame_per_block=3)
    assert dense.calls >= 2
    return out


def part_of(kind, given, span):
    """The call of a rank that holds the frames `span` alone: what has frames is cut, as a caller would cut it."""
    made = dict(given)
    axis = FRAME_AXIS.get(kind, 2)
    unit = tokens_of(kind) if kind == "ltx" else (2 if kind.endswith("1.5") else 1)
    for name in ("hidden_states", "control_hidden_states"):
        if name in made:
            made[name] = made[name].narrow(axis, span.start * unit, len(span) * unit)
    if kind == "skyreels":
        made["timestep"] = made["timestep"][:, span.start : span.stop]
    if kind == "wan-5b":
        made["timestep"] = made["timestep"][:, span.start * 4 : span.stop * 4]
    if kind == "ltx":
        made["num_frames"] = len(span)
    return made


def compare_parts(rank, world, every):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    worst = {}
    partition = Partition.from_sizes([3, 0, 4])
    mine = partition.range(rank)
    for kind, wanted in every.items():
        model, given = make(kind), call_of(kind, FRAMES)
        with parallelize(model, partition, NARROW):
            out = run(model, part_of(kind, given, mine))
        axis = FRAME_AXIS.get(kind, 2)
        unit = wanted.shape[axis] // FRAMES
        cut = wanted.narrow(axis, mine.start * unit, len(mine) * unit)
        assert out.shape == cut.shape, (kind, out.shape, cut.shape)
        worst[kind] = (out - cut).abs().max().item() if len(mine) else 0.0
    return worst


@pytest.mark.distributed
def test_d2_ranks_that_hold_their_own_frames_alone_compute_the_same():
    every = {kind: wanted_of(kind, NARROW) for kind in KINDS if kind != "skyreels-causal"}
    for worst in run_ranks(compare_parts, 3, every):
        assert len(worst) == 16 and max(worst.values()) <= TOLERANCE, worst


@functools.cache
def in_every_class(world):
    """`compare` on all ranks, once for the lines that read it: stock and all frames in scope, then two scopes."""
    return compared(world, KINDS, [None, Scope(FRAMES, 0, gate="off"), NARROW, SOFT])


def worst_of(world, numbers):
    return {
        key: max(one[key] for one in in_every_class(world)) for key in in_every_class(world)[0] if key[1] in numbers
    }


@pytest.mark.distributed
@pytest.mark.parametrize("world", [1, 2, 3])
def test_d1_all_frames_in_scope_is_the_stock_model_for_any_ranks(world):
    worst = worst_of(world, (0, 1))
    assert len(worst) == 2 * len(KINDS) and max(worst.values()) <= TOLERANCE, worst


@pytest.mark.distributed
@pytest.mark.parametrize("world", [1, 2, 3])
def test_d2_a_scope_is_masked_dense_attention_for_any_ranks(world):
    worst = worst_of(world, (2, 3))
    assert len(worst) == 2 * len(KINDS) and max(worst.values()) <= TOLERANCE, worst


@pytest.mark.distributed
@pytest.mark.parametrize("world", [1, 2, 3])
def test_d6_the_family_of_scopes_is_masked_dense_attention_for_any_ranks(world):
    scopes = [
        RotatingAnchors(reference=6, window=1), Decay(reference=4, factor=0.7), Sinks(1, 2), BlockCausal(2),
        Both(BlockCausal(2), NARROW),
    ]  # fmt: skip
    for worst in compared(world, ("wan", "hunyuan", "cogvideox", "ltx"), scopes):
        assert max(worst.values()) <= TOLERANCE, worst


def prompted(rank, world):
    """HunyuanVideo 1.5 sorts its text rows; frames 0 to 2 hear the second of two prompts, 3 to 5 the first."""
    torch.set_num_threads(1)
    model = make("hunyuan15")
    long, short = call_of("hunyuan15", 6, texts=2), call_of("hunyuan15", 3, texts=1)
    second = torch.cat([long["encoder_hidden_states_2"], long["encoder_hidden_states_2"] + 0.5], 1)
    masks = (
        torch.tensor([[1, 1, 1, 0, 0, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 1, 1, 1, 1, 1]]).bool(),
        torch.tensor([[1, 0, 0, 1, 1, 0], [0, 0, 0, 1, 0, 0]]).bool(),
    )
    long |= {"encoder_hidden_states_2": second, "image_embeds": torch.zeros_like(long["image_embeds"])}
    long |= {"encoder_attention_mask": masks[0], "encoder_attention_mask_2": masks[1]}
    alone = {**short, "hidden_states": long["hidden_states"][:, :, :3], "image_embeds": long["image_embeds"]}
    alone |= {"encoder_hidden_states": long["encoder_hidden_states"][:, 5:], "encoder_hidden_states_2": second[:, 3:]}
    alone |= {"encoder_attention_mask": masks[0][:, 5:], "encoder_attention_mask_2": masks[1][:, 3:]}
    weights = torch.tensor([[0.0, 1.0]] * 3 + [[1.0, 0.0]] * 3)
    with parallelize(model, Partition.even(6, world), BlockCausal(1), whole=True) as handle:
        handle.set_prompts(weights, 5)
        both = run(model, long)
        handle.set_prompts(torch.full((6, 2), 0.5), 5)
        mixed = run(model, long)
    with parallelize(model, Partition.even(3, 1), BlockCausal(1), whole=True, transport=DryTransport(0, 1)):
        first = run(model, alone)
    return (both[:, :, :3] - first).abs().max().item(), (mixed[:, :, :3] - first).abs().max().item()


def check_prompted(parts):
    for alone, mixed in parts:
        assert alone <= 2e-6 and mixed > 1e-3


def test_several_prompts_of_a_model_that_sorts_its_text_rows_are_those_of_each_alone():
    check_prompted([prompted(0, 1)])


@pytest.mark.distributed
@pytest.mark.parametrize("world", [2, 3])
def test_several_prompts_of_a_model_that_sorts_its_text_rows_over_ranks(world):
    check_prompted(run_ranks(prompted, world))
