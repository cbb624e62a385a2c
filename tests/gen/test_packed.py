"""Weights with eight bits a number under diffusers' ``from_pretrained``."""

import shutil

import pytest
import torch
from longtake import UserError
from longtake.motion.model import MDM
from longtake.packed import WEIGHTS, is_packed, save_eight_bits

SIZE = {"features": 8, "width": 16, "layers": 1, "heads": 2, "feedforward": 16, "text_width": 6}


@pytest.fixture
def net() -> MDM:
    torch.manual_seed(0)
    return MDM(**SIZE).eval()


def test_a_model_comes_back_rounded_to_a_step_of_its_rows_and_half_as_large(net, tmp_path):
    net.half().save_pretrained(tmp_path / "half")
    net.float()
    folder = save_eight_bits(net, tmp_path / "eight")
    assert is_packed(folder / WEIGHTS) and not is_packed(tmp_path / "half" / WEIGHTS)
    again = MDM.from_pretrained(folder)
    assert again.dtype == torch.float32 and not again.training and again.config["width"] == 16
    for key, value in net.state_dict().items():
        step = value.flatten(1).abs().amax(1).reshape(-1, *[1] * (value.ndim - 1)) / 127 if value.ndim > 1 else 0.0
        assert ((again.state_dict()[key] - value).abs() <= step * 0.501 + 1e-9).all(), key
    assert torch.equal(MDM.from_pretrained(tmp_path, subfolder="eight").embed_frames.weight, again.embed_frames.weight)
    assert MDM.from_pretrained(folder, torch_dtype=torch.bfloat16).dtype == torch.bfloat16
    assert MDM.from_pretrained(tmp_path / "half").dtype == torch.float32


def test_weights_that_are_cut_off_are_refused(net, tmp_path):
    folder = save_eight_bits(net, tmp_path / "eight")
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-200])
    assert not is_packed(broken / WEIGHTS) and not is_packed(tmp_path / "nothing")
    with pytest.raises((UserError, OSError)):
        MDM.from_pretrained(broken)
