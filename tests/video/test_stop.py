"""The stop figures of a training, its sheet, and how clips travel in the prepared file."""

import json

import numpy as np
import pytest
import torch
from longtake.video import stop, train
from longtake.video.corpus import Sources, pack, unpack
from longtake.video.data import load_clips
from longtake.video.sheets import LINES, SUBJECT_FRAMES, subject_sheet
from PIL import Image
from video_clips import write_clips


class Words:
    """Stands for the text encoder."""

    def encode(self, texts):
        return torch.randn(len(texts), 16, 384, generator=torch.Generator().manual_seed(len(texts[0])))


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    return Sources.of(load_clips(write_clips(tmp_path_factory.mktemp("clips") / "emoji_train.zip")), Words())


def test_packed_frames_come_back_and_flat_pictures_become_zeros():
    frames = np.random.default_rng(0).integers(0, 256, (3, 5, 7, 3), dtype=np.uint8)
    assert np.array_equal(unpack(pack(frames)), frames)
    assert pack(np.full((1, 4, 6, 3), 200, np.uint8))[..., 1:].max() == 0  # what compresses


def test_the_real_clip_moves_as_itself_and_a_still_one_does_not(sources):
    clip = next(clip for clip in sources.seen if clip.subject == "dog")
    real = stop.figures(clip.frames[:16], clip)
    assert real["arrow"] > 0.9 and real["stays"] < 0.1
    assert real["sharpness"] == pytest.approx(1, abs=0.05) and real["motion"] == pytest.approx(1, abs=0.25)
    still = stop.figures(np.repeat(clip.frames[:1], 16, 0), clip)
    assert still["stays"] == 1 and still["motion"] == 0
    back = stop.figures(clip.frames[15::-1], clip)
    assert back["arrow"] < 0.1


def test_each_subject_is_asked_for_once_by_its_own_caption(sources):
    chosen = stop.one_each(sources.seen)
    assert [clip.subject for clip in chosen] == sorted({clip.subject for clip in sources.seen})
    assert all(clip.wordings[0] == clip.caption for clip in chosen)


def test_the_report_has_every_subject_its_means_and_a_sheet(sources, tmp_path, monkeypatch, capsys):
    class Net(torch.nn.Module):
        """v of noise that is wholly known: the sample is the state's first number everywhere."""

        def __init__(self):
            super().__init__()
            self.one = torch.nn.Parameter(torch.ones(()))
            self.config = type("Config", (), {"sample_size": 8, "in_channels": 24})()

        def forward(self, x, time, encoder_hidden_states):
            return type("Out", (), {"sample": x * 0 + encoder_hidden_states[:, 0, 0][:, None, None, None, None]})()

    class Decoder(torch.nn.Module):
        def decode(self, latent):
            return type("Out", (), {"sample": latent[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3)})()

    told = stop.report(Net(), Decoder(), sources, tmp_path, seed=0)
    kept = json.loads((tmp_path / "stop.json").read_text())
    subjects = {clip.subject for clip in sources.seen}
    assert set(kept["each"]) == subjects and kept["subjects"] == len(subjects) == told["subjects"]
    assert told["moving"] == 0 and "stop figures" in capsys.readouterr().out
    telling = [row["stays"] for row in kept["each"].values() if np.isfinite(row["arrow"])]
    assert told["stays"] == pytest.approx(np.mean(telling), abs=1e-3)
    assert Image.open(tmp_path / "sheet.png").width == SUBJECT_FRAMES * 66


def test_many_subjects_stand_in_several_columns(tmp_path):
    clips = [(f"subject {n}", np.full((9, 8, 8, 3), n, np.uint8)) for n in range(LINES + 2)]
    subject_sheet(clips, tmp_path / "sheet.png")
    picture = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert picture.shape[1] == 2 * SUBJECT_FRAMES * 10
    assert picture[4, 4, 0] == 0 and picture[4, SUBJECT_FRAMES * 10 + 4, 0] == LINES
    assert picture.shape[0] % LINES == 0


def test_a_tiny_recipe_says_what_its_corpus_is(sources, tmp_path, monkeypatch):
    from diffusers import UNet3DConditionModel
    from longtake.video.prior import FrameAutoencoder

    shape = {**train.UNET, "block_out_channels": (16, 16), "norm_num_groups": 4, "attention_head_dim": 8}
    monkeypatch.setattr(train, "UNET", shape)
    net = FrameAutoencoder(train.LATENT_CHANNELS, (8, 8, 8))
    folder = train.export(net, UNet3DConditionModel(**shape), tmp_path / "prior", sources)
    assert json.loads((folder / "prior.json").read_text()) == {"corpus": "emoji"}
    assert set(json.loads((folder / "knows.json").read_text())) <= {clip.wordings[0] for clip in sources.seen}
