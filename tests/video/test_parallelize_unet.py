"""UNet3DConditionModel on several ranks is UNet3DConditionModel on one: exactness, safety, traffic."""

import pytest
import torch
from longtake.errors import UserError
from longtake.kernels.partition import Partition
from longtake.video.parallelize import Exchange, UnsupportedModule, parallelize
from longtake.video.scope import Scope
from ranks import run_ranks
from video_models import golden, keep_mask, mask_time, noise, tiny_unet

TOLERANCE = 1e-5
HEIGHT = WIDTH = 4


def inputs(frames, batch=2):
    return noise("latents", batch, 4, frames, HEIGHT, WIDTH), noise("text", batch, 5, 32)


def compare_many(rank, world, jobs):
    """Run jobs (frames, sizes, scope, settings, timestep) on one model; (largest difference to its reference) each."""
    torch.set_grad_enabled(False)
    model = tiny_unet()
    answers = []
    for frames, sizes, scope, settings, timestep, reference in jobs:
        latents, text = inputs(frames)
        partition = Partition.from_sizes(sizes)
        mine = partition.range(rank)
        with parallelize(model, partition, scope, **settings) as handle:
            out = model(latents[:, :, mine.start : mine.stop], timestep, encoder_hidden_states=text).sample
            counter = handle.counter.as_dict()
        expected = reference[:, :, mine.start : mine.stop]
        assert out.shape == expected.shape
        answers.append(((out - expected).abs().max().item() if len(mine) else 0.0, counter))
    return answers


def stock(frames, timestep, keep=None):
    with torch.no_grad():
        model = tiny_unet()
        if keep is not None:
            mask_time(model, keep)
        latents, text = inputs(frames)
        return model(latents, timestep, encoder_hidden_states=text).sample


def sizes(frames, world):
    return Partition.even(frames, world).sizes


@pytest.mark.distributed
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_a1_every_strategy_equals_stock_on_concatenated_latents(world):
    full = stock(19, 500)
    short = stock(5, 500)
    jobs = [
        (19, sizes(19, world), None, {"strategy": strategy}, 500, full) for strategy in ("halo", "transpose", "gather")
    ]
    jobs.append((5, sizes(5, world), None, {"strategy": "halo"}, 500, short))  # F < 2W for W = 3, 4
    everybody = Scope(window=0, global_frames=19, gate="off")
    jobs.append((19, sizes(19, world), everybody, {"strategy": "halo"}, 500, full))
    for answers in run_ranks(compare_many, world, jobs):
        for difference, _ in answers:
            assert difference <= TOLERANCE


@pytest.mark.distributed
@pytest.mark.parametrize("world", [2, 3, 4])
def test_a1_empty_and_lopsided_pieces_equal_stock(world):
    lopsided = {2: (1, 10), 3: (1, 9, 1), 4: (2, 1, 0, 8)}[world]
    empty = {2: (0, 3), 3: (2, 0, 1), 4: (1, 0, 0, 2)}[world]
    wide = Scope(window=4, global_frames=3, gate="off")
    masked = stock(11, 500, keep_mask(11, 4, wide.global_indices(11)))
    jobs = [
        (11, lopsided, wide, {"strategy": strategy}, 500, masked) for strategy in ("halo", "transpose", "gather")
    ]  # the window is wider than a neighbour's piece
    jobs += [(3, empty, None, {"strategy": strategy}, 500, stock(3, 500)) for strategy in ("halo", "transpose")]
    for answers in run_ranks(compare_many, world, jobs):
        for difference, _ in answers:
            assert difference <= TOLERANCE


@pytest.mark.distributed
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_a2_dual_scope_equals_stock_with_a_mask(world):
    jobs = []
    for frames, window, count in [(19, 2, 5), (16, 8, 16), (7, 0, 1)]:
        scope = Scope(window=window, global_frames=count, gate="off")
        keep = keep_mask(frames, window, scope.global_indices(frames))
        for timestep in (100, 900) if frames == 19 else (500,):
            reference = stock(frames, timestep, keep)
            strategies = ("halo", "transpose", "gather") if frames == 19 and timestep == 100 else ("auto",)
            jobs += [(frames, sizes(frames, world), scope, {"strategy": s}, timestep, reference) for s in strategies]
    for answers in run_ranks(compare_many, world, jobs):
        for difference, _ in answers:
            assert difference <= TOLERANCE


@pytest.mark.distributed
def test_a4_w_independence_of_the_result():
    scope = Scope(window=2, global_frames=4, gate="soft")
    latents, text = inputs(13)
    model = tiny_unet()
    with torch.no_grad(), parallelize(model, Partition.even(13, 1), scope):
        alone = model(latents, 640, encoder_hidden_states=text).sample
    for answers in run_ranks(compare_many, 3, [(13, (5, 4, 4), scope, {}, 640, alone)]):
        assert answers[0][0] <= TOLERANCE


def test_remove_restores_the_stock_model_bit_for_bit():
    model = tiny_unet()
    latents, text = inputs(6)
    with torch.no_grad():
        before = model(latents, 300, encoder_hidden_states=text).sample
        handle = parallelize(model, Partition.even(6, 1), Scope(window=1, global_frames=2, gate="off"))
        during = model(latents, 300, encoder_hidden_states=text).sample
        handle.remove()
        after = model(latents, 300, encoder_hidden_states=text).sample
    assert torch.equal(before, after)
    assert not torch.allclose(before, during, atol=1e-3)
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


GOLDENS = ["v2_full_f19", "v2x_full_f9_groups32", "v3_dual_f19_p2_k5", "v3_dual_f16_p8_k16", "v3_dual_f7_p0_k1"]


def run_golden(rank, world, case):
    torch.set_grad_enabled(False)
    about, outputs, inputs, model = golden(case)
    frames, dual = about["total_frames"], about.get("dual")
    scope = Scope(dual["P"], dual["K"], gate="off") if dual else None
    assert dual is None or list(scope.global_indices(frames)) == dual["S"]
    partition = Partition.from_sizes(about["frames_per_rank_any_of"][str(world)])
    mine = partition.range(rank)
    worst = 0.0
    with parallelize(model, partition, scope):
        for timestep in about["timesteps"]:
            out = model(inputs["latents"][:, :, mine.start : mine.stop], timestep, inputs["text"]).sample
            expected = outputs[f"t{timestep}"][:, :, mine.start : mine.stop]
            worst = max(worst, (out - expected).abs().max().item())
    return worst


@pytest.mark.distributed
@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("case", GOLDENS)
def test_golden_v2_and_v3(case, world):
    assert max(run_ranks(run_golden, world, case)) <= TOLERANCE


def test_a14_a_wrong_number_of_frames_is_refused():
    model = tiny_unet()
    latents, text = inputs(5)
    with (
        parallelize(model, Partition.even(6, 1), Scope(gate="off")),
        pytest.raises(UserError, match=r"given 5 frames.*0\.\.6"),
    ):
        model(latents, 300, encoder_hidden_states=text)


def test_a14_an_unknown_temporal_module_is_named():
    model = tiny_unet()
    model.mid_block.extra = torch.nn.Conv3d(4, 4, (3, 1, 1))
    with pytest.raises(UnsupportedModule, match=r"mid_block\.extra \(Conv3d\)"):
        parallelize(model, Partition.even(6, 1), Scope())
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_a14_unknown_settings_list_the_members():
    with pytest.raises(UserError, match="auto, halo, transpose, gather"):
        parallelize(tiny_unet(), Partition.even(6, 1), None, strategy="ring")
    assert Exchange("halo") is Exchange.HALO


def test_a14_a_group_norm_over_frames_is_refused_when_it_happens():
    model = tiny_unet()
    with (
        parallelize(model, Partition.even(2, 1), Scope(gate="off")),
        pytest.raises(UnsupportedModule, match="conv_norm_out.*5-D"),
    ):
        model.conv_norm_out(torch.zeros(1, 32, 2, 4, 4))


def test_a14_variants_of_the_temporal_transformer_are_refused():
    from diffusers.models.embeddings import SinusoidalPositionalEmbedding

    model = tiny_unet()
    model.transformer_in.transformer_blocks[0].pos_embed = SinusoidalPositionalEmbedding(64, 32)
    with pytest.raises(UnsupportedModule, match=r"transformer_in\.transformer_blocks\.0.*positional"):
        parallelize(model, Partition.even(6, 1), Scope())
    with pytest.raises(UnsupportedModule, match="Linear has no record"):
        parallelize(torch.nn.Linear(2, 2), Partition.even(6, 1), Scope())


def test_a14_window_and_budget_beyond_the_video_are_full_attention():
    latents, text = inputs(3)
    model = tiny_unet()
    with torch.no_grad(), parallelize(model, Partition.even(3, 1), Scope(window=9, global_frames=9, gate="off")):
        out = model(latents, 500, text).sample
    assert (out - stock(3, 500)).abs().max() <= TOLERANCE


def test_a14_training_and_double_patching_are_refused():
    model = tiny_unet()
    latents, text = inputs(3)
    with parallelize(model, Partition.even(3, 1), Scope(gate="off")):
        with pytest.raises(UserError, match="already"):
            parallelize(model, Partition.even(3, 1), Scope(gate="off"))
        model.train()
        with pytest.raises(UserError, match="inference"):
            model(latents, 500, text)


def test_two_models_in_one_process_do_not_interfere():
    latents, text = inputs(6)
    first, second = tiny_unet(), tiny_unet()
    one, two = Scope(1, 2, gate="off"), Scope(0, 1, gate="off")
    with torch.no_grad():
        expected = [
            mask_time(tiny_unet(), keep_mask(6, s.window, s.global_indices(6)))(latents, 500, text).sample
            for s in (one, two)
        ]
        with parallelize(first, Partition.even(6, 1), one), parallelize(second, Partition.even(6, 1), two):
            for model, wanted in [(first, expected[0]), (second, expected[1]), (first, expected[0])]:
                assert (model(latents, 500, text).sample - wanted).abs().max() <= TOLERANCE


def fast(rank, world, frames):
    torch.set_grad_enabled(False)
    model = tiny_unet()
    latents, text = inputs(frames)
    partition = Partition.even(frames, world)
    mine = partition.range(rank)
    scope = Scope(2, 3, gate="off")
    with parallelize(model, partition, scope, mode="fast", strategy="halo") as handle:
        out = model(latents[:, :, mine.start : mine.stop], 500, text).sample
        return out, handle.counter.as_dict(), handle.explain()


@pytest.mark.distributed
def test_fast_mode_is_close_to_exact_labelled_and_exact_on_one_rank():
    scope = Scope(2, 3, gate="off")
    exact = stock(19, 500, keep_mask(19, 2, scope.global_indices(19)))
    answers = run_ranks(fast, 3, 19)
    error = (torch.cat([answer[0] for answer in answers], 2) - exact).abs().max().item()
    assert TOLERANCE < error <= 0.35 * exact.abs().max().item()
    assert all("approximate" in answer[2] for answer in answers)
    assert answers[0][1]["rounds"] == 10 + 8 + 5  # attentions, conv layers, norms of temporal transformers
    with torch.no_grad():
        assert (fast(0, 1, 19)[0] - exact).abs().max() <= TOLERANCE
