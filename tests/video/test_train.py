"""``longtake train video``: the recipe runs from clips to a prior, goes on after a stop, and can begin with a prior."""

import json
import shutil

import pytest
import torch
from longtake import cli
from longtake.video import train
from longtake.video.data import load_clips
from longtake.video.pipeline import LongVideoPipeline
from video_clips import write_clips

TINY_UNET = {
    **train.UNET, "block_out_channels": (16, 16), "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 8,
}  # fmt: skip
TINY_AUTOENCODER = {"latent_channels": train.LATENT_CHANNELS, "widths": (8, 8, 8)}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """The recipe at tiny width on toy clips: a function that runs the command into a folder, and its exit code."""
    data = tmp_path_factory.mktemp("clips")
    write_clips(data / "emoji_train.zip")

    def run(out, steps, *more):
        amounts = ["--autoencoder-steps", "2", "--autoencoder-batch", "2", "--batch", "1", "--precision", "no"]
        return cli.main(
            ["train", "video", "--data", str(data), "--out", str(out), *amounts, "--steps", str(steps), *more]
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "UNET", TINY_UNET)
        patch.setattr(train, "AUTOENCODER", TINY_AUTOENCODER)
        yield run


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    """What the recipe makes in two steps."""
    out = tmp_path_factory.mktemp("whole")
    assert recipe(out, 2) == 0
    return out


def weights(folder):
    return LongVideoPipeline.from_prior(folder).unet.state_dict()


def test_it_begins_with_a_prior_and_keeps_its_autoencoder(recipe, whole, tmp_path):
    assert recipe(tmp_path, 1, "--start-from", str(whole / "prior")) == 0
    assert not (tmp_path / "autoencoder.state").exists()
    first, second = weights(whole / "prior"), weights(tmp_path / "prior")
    # one step at the first rate of the warm-up moves no weight by more than that rate, 1e-5, and float16's rounding
    assert all(torch.allclose(first[key], second[key], atol=3e-5, rtol=2e-3) for key in first)
    one = LongVideoPipeline.from_prior(whole / "prior").vae.state_dict()
    two = LongVideoPipeline.from_prior(tmp_path / "prior").vae.state_dict()
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_it_refuses_to_begin_with_a_prior_of_another_shape(recipe, whole, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "UNET", {**TINY_UNET, "block_out_channels": (16, 32)})
    assert recipe(tmp_path, 1, "--start-from", str(whole / "prior")) == 2
    assert "differs in block_out_channels" in capsys.readouterr().err


def test_the_recipe_makes_a_prior_and_goes_on_from_its_checkpoint(recipe, whole, tmp_path):
    pipe = LongVideoPipeline.from_prior(whole / "prior")
    assert pipe("a dog", 3, num_inference_steps=1).frames.shape == (3, 64, 64, 3)
    record = [json.loads(line) for line in (whole / "unet.jsonl").read_text().splitlines()]
    assert [row["step"] for row in record] == [2] and record[0]["loss_held_out"] > 0
    out = shutil.copytree(whole, tmp_path / "goes on")
    assert recipe(out, 4) == 0
    record = [json.loads(line) for line in (out / "unet.jsonl").read_text().splitlines()]
    assert [row["step"] for row in record] == [2, 4]


def test_each_wording_is_trained_and_held_out_wordings_are_not(tmp_path):
    from longtake.video.subjects import SUBJECTS

    clips = load_clips(write_clips(tmp_path / "emoji_train.zip"))
    for clip in clips:
        texts, tail = clip.wordings, f", {clip.tone} skin tone" if clip.tone else ""
        assert {text + tail for text in (clip.caption, *SUBJECTS[clip.subject].wordings)} <= set(texts)
        assert not set(SUBJECTS[clip.subject].held_out) & set(texts)
