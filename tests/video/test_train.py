"""``longtake train video``: the recipe runs from clips to a prior, goes on after a stop, and can begin with a prior."""

import json

import pytest
import torch
from longtake import cli
from longtake.video import train
from longtake.video.data import load_clips
from longtake.video.pipeline import LongVideoPipeline
from video_clips import write_clips

TINY_UNET = {**train.UNET, "block_out_channels": (16, 16), "norm_num_groups": 4, "attention_head_dim": 8}
TINY_AUTOENCODER = {"latent_channels": train.LATENT_CHANNELS, "widths": (8, 8, 8)}


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """The recipe at tiny width on toy clips: a function that runs the command and returns its exit code."""
    monkeypatch.setattr(train, "UNET", TINY_UNET)
    monkeypatch.setattr(train, "AUTOENCODER", TINY_AUTOENCODER)
    write_clips(tmp_path / "emoji_train.zip")

    def run(out, steps, *more):
        amounts = ["--autoencoder-steps", "2", "--autoencoder-batch", "2", "--batch", "1", "--precision", "no"]
        data = ["--data", str(tmp_path), "--out", str(tmp_path / out)]
        return cli.main(["train", "video", *data, *amounts, "--steps", str(steps), *more])

    return run


def weights(folder):
    return LongVideoPipeline.from_prior(folder).unet.state_dict()


def test_the_recipe_makes_a_prior_and_goes_on_from_its_checkpoint(recipe, tmp_path):
    assert recipe("whole", 2) == 0
    pipe = LongVideoPipeline.from_prior(tmp_path / "whole/prior")
    assert pipe("a dog", 3, num_inference_steps=1).frames.shape == (3, 64, 64, 3)
    record = [json.loads(line) for line in (tmp_path / "whole/unet.jsonl").read_text().splitlines()]
    assert [row["step"] for row in record] == [2] and record[0]["loss_held_out"] > 0
    assert recipe("whole", 4) == 0
    record = [json.loads(line) for line in (tmp_path / "whole/unet.jsonl").read_text().splitlines()]
    assert [row["step"] for row in record] == [2, 4]


def test_it_begins_with_a_prior_and_keeps_its_autoencoder(recipe, tmp_path):
    assert recipe("first", 2) == 0
    assert recipe("second", 1, "--start-from", str(tmp_path / "first/prior")) == 0
    assert not (tmp_path / "second/autoencoder.state").exists()
    first, second = weights(tmp_path / "first/prior"), weights(tmp_path / "second/prior")
    # one step at the first rate of the warm-up moves no weight by more than that rate, 1e-5, and float16's rounding
    assert all(torch.allclose(first[key], second[key], atol=3e-5, rtol=2e-3) for key in first)
    one = LongVideoPipeline.from_prior(tmp_path / "first/prior").vae.state_dict()
    two = LongVideoPipeline.from_prior(tmp_path / "second/prior").vae.state_dict()
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_it_refuses_to_begin_with_a_prior_of_another_shape(recipe, tmp_path, capsys):
    assert recipe("first", 1) == 0
    train.UNET = {**TINY_UNET, "block_out_channels": (16, 32)}
    assert recipe("second", 1, "--start-from", str(tmp_path / "first/prior")) == 2
    assert "differs in block_out_channels" in capsys.readouterr().err


def test_each_wording_is_trained_and_held_out_wordings_are_not(tmp_path):
    from longtake.video.subjects import SUBJECTS

    clips = load_clips(write_clips(tmp_path / "emoji_train.zip"))
    for clip in clips:
        texts, tail = clip.wordings, f", {clip.tone} skin tone" if clip.tone else ""
        assert {text + tail for text in (clip.caption, *SUBJECTS[clip.subject].wordings)} <= set(texts)
        assert not set(SUBJECTS[clip.subject].held_out) & set(texts)
