"""The released model: its goldens, its parameters, its checkpoints."""

import pytest
import torch
from longtake.errors import UserError
from longtake.medical.legacy.ddpm import DDPM, ddpm_schedules, load
from longtake.medical.legacy.unet import ContextUnet
from longtake.medical.legacy.vivit import ViViT
from medical_golden import Case, parts
from torch import nn


def filled(model, case, prefix):
    """The golden's parameters in a model; BatchNorm's running numbers stay as they are made."""
    state = {key.removeprefix(prefix): value for key, value in case.state().items()}
    told = model.load_state_dict(state, strict=False)
    assert not told.unexpected_keys
    assert all("running_" in key or "num_batches" in key for key in told.missing_keys)
    return model.eval()


def toy(x, context, time, mask):
    dropped = mask.view(-1, 1, 1, 1, 1)
    return torch.tanh(0.7 * x + 0.4 * (1 - dropped) * context) * (0.5 + 0.5 * time.view(-1, 1, 1, 1, 1))


class Toy(nn.Module):
    def forward(self, x, context, time, mask):
        return toy(x, context, time, mask)


def test_s1_parameters_are_as_many_as_the_release_has():
    with torch.device("meta"):
        vivit, unet = ViViT(), ContextUnet()
    assert sum(p.numel() for p in vivit.parameters()) == 12_718_295
    assert sum(p.numel() for p in unet.parameters()) == 4_231_849


@pytest.mark.parametrize("name", ["D1_vivit_depth1", "D1_vivit_depth2"])
def test_s1_conditioner_equals_the_golden(name):
    case = Case(name)
    model = filled(ViViT(**case.config), case, "vivit_model.")
    with torch.inference_mode():
        case.check("context", model(case.given("x")))
        case.check("f64_context", model.double()(case.given("x").double()))


def test_s1_denoiser_equals_the_golden():
    case = Case("D2_context_unet")
    model = filled(ContextUnet(**case.config), case, "nn_model.")
    with torch.inference_mode():
        found = model(*(case.given(name) for name in ("x", "c", "t", "context_mask")))
    for name, part in parts(found).items():
        case.check(f"eps_{name}", part)


def test_s2_tables_equal_the_golden_and_end_off_zero():
    case = Case("D3_tables")
    tables = ddpm_schedules(1e-4, 0.02, 400)
    for name, table in tables.items():
        assert table.shape == (401,)
        case.check(name, table)
    assert abs(float(tables["alphabar_t"][400]) - 0.017297) < 1e-5
    assert torch.allclose(1 - tables["alpha_t"][[0, -1]], torch.tensor([1e-4, 0.02]), atol=1e-6)


def test_s1_sampling_and_loss_equal_the_golden_of_a_formula():
    case = Case("D3_sampler_toy")
    model = DDPM(nn.Identity(), Toy(), case.config["betas"], case.config["n_T"])
    context = case.given("c")
    case.check("x0", model.sample(context, case.draws, case.config["guide_w"]))
    case.check("x0_w0", model.sample(context, case.draws, 0.0))
    clean, noise, time = (case.given(name) for name in ("x0_train", "noise_train", "t_train"))
    mask = case.given("context_mask_train")
    case.check("x_t", model.noised(clean, time, noise))
    case.check("loss", model.loss(clean, context, time, noise, mask)[None])


def test_s1_sampling_with_the_denoiser_equals_the_golden():
    case = Case("D3_sampler_unet")
    unet = ContextUnet(n_feat=case.config["n_feat"], in_shape=case.config["in_shape"])
    model = DDPM(nn.Identity(), filled(unet, case, "nn_model."), case.config["betas"], case.config["n_T"])
    found = model.sample(case.given("c"), case.draws, case.config["guide_w"])
    for name, part in parts(found).items():
        case.check(f"x0_{name}", part)


def small():
    vivit = ViViT((16, 16, 8), (8, 8, 8), num_frames=4, depth=1)
    return DDPM(vivit, ContextUnet(in_shape=(1, 16, 16, 8)), n_T=5).eval()


def test_s1_checkpoint_loads_with_all_keys_and_no_other(tmp_path):
    torch.manual_seed(0)
    model, other = small(), small()
    torch.save(model.state_dict(), tmp_path / "run.pth")
    load(other, tmp_path / "run.pth")
    frames = torch.rand(1, 4, 1, 16, 16, 8)
    assert torch.equal(model.vivit_model(frames), other.vivit_model(frames))
    names = set(model.state_dict())
    assert {"alpha_t", "mab_over_sqrtmab", "vivit_model.conv3d.2.weight", "nn_model.up0.0.bias"} <= names
    state = model.state_dict()
    state.pop("sqrtab")
    torch.save(state, tmp_path / "short.pth")
    with pytest.raises(UserError, match="sqrtab"):
        load(other, tmp_path / "short.pth")


def test_sizes_the_release_cannot_have_are_refused():
    with pytest.raises(UserError, match="patch_size"):
        ViViT((16, 16, 8), (4, 4, 4), depth=2)
