"""Long-CLIP's stretched positions: the original's numbers, and what a stretched tower keeps."""

import pytest
import torch
from longtake.errors import UserError
from longtake.video.reading.stretch import TwoTables, fold_tables, stretch_positions, stretch_text_tower
from reading_models import Golden, questions, tiny_clip, tiny_siglip


def looped(table, keep, ratio):
    rows = [table[i] for i in range(keep)]
    for i in range(keep, len(table)):
        after = table[i + 1] if i + 1 < len(table) else 2 * table[i] - table[i - 1]
        rows += [(1 - j / ratio) * table[i] + j / ratio * after for j in range(ratio)]
    return torch.stack(rows)


@pytest.mark.parametrize("name", ["table_77", "table_64"])
def test_l1_is_the_originals_stretch(name):
    case = Golden("L1_stretch")
    found = stretch_positions(case.given(name))
    case.check(name, found)
    assert (found - torch.from_numpy(case.stored[name])).abs().max() <= 5e-7
    table = case.given(name)
    assert torch.equal(found[:20], table[:20]) and torch.equal(found[20::4], table[20:])


@pytest.mark.parametrize(("rows", "keep", "ratio"), [(77, 20, 4), (64, 20, 4), (30, 0, 3), (10, 8, 1), (41, 7, 5)])
def test_l1_keep_and_ratio_generalise_and_a_line_stays_a_line(rows, keep, ratio):
    table = torch.randn(rows, 6, generator=torch.Generator().manual_seed(0))
    found = stretch_positions(table, keep, ratio)
    assert len(found) == keep + ratio * (rows - keep)
    assert (found - looped(table, keep, ratio)).abs().max() <= 1e-6
    line = torch.arange(rows, dtype=torch.float32)[:, None] * 4
    where = torch.cat([torch.arange(keep), keep + torch.arange(ratio * (rows - keep)) / ratio])
    if ratio in (1, 4):
        assert torch.equal(stretch_positions(line, keep, ratio)[:, 0], where * 4)
    with pytest.raises(ValueError):
        stretch_positions(table[: keep + 1], keep, ratio)


def test_l2_short_prompts_mean_the_same_and_long_ones_run(tmp_path):
    from transformers import CLIPModel

    before, after = tiny_clip(), tiny_clip()
    assert stretch_text_tower(after) == 248
    for length in (12, 20, 21, 40):
        ids = questions([length], width=length)
        with torch.no_grad():
            pair = [model.get_text_features(input_ids=ids).pooler_output for model in (before, after)]
        assert torch.equal(*pair) is (length <= 21)
    with torch.no_grad():
        assert after.get_text_features(input_ids=questions([150], width=150)).pooler_output.isfinite().all()
    with pytest.raises(ValueError, match="249"):
        after.get_text_features(input_ids=questions([249], width=249))
    after.save_pretrained(tmp_path)
    again = CLIPModel.from_pretrained(tmp_path)
    assert again.config.text_config.max_position_embeddings == 248
    weights = after.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in again.state_dict().items())
    ids = questions([200], width=248)
    with torch.no_grad():  # how weights that were read lie in memory decides the last bit of a product
        one, other = (m.get_text_features(input_ids=ids).pooler_output for m in (after, again))
    assert (one - other).abs().max() <= 1e-6
    with pytest.raises(UserError, match="248 tokens already"):
        stretch_text_tower(after)
    with pytest.raises(UserError, match="no CLIP or SigLIP"):
        stretch_text_tower(torch.nn.Linear(2, 2))
    assert stretch_text_tower(tiny_siglip()) == 196


def test_l3_two_tables_are_their_fold_and_only_late_rows_learn():
    frozen, learned = torch.randn(2, 248, 5, generator=torch.Generator().manual_seed(1)).unbind()
    tables = TwoTables(frozen)
    with torch.no_grad():
        tables.position_embedding_res.copy_(learned)
    early = (torch.arange(248) < 20)[:, None].float()
    assert torch.equal(tables.folded(), frozen * early + learned * (1 - early))
    assert torch.equal(tables(torch.arange(30)[None]), fold_tables(frozen, learned)[None, :30])
    tables(torch.arange(248)).square().sum().backward()
    gradient = tables.position_embedding_res.grad
    assert tables.position_embedding.grad is None and gradient[:20].abs().max() == 0
    assert (gradient[20:].abs().amax(1) > 0).all()
    with pytest.raises(ValueError):
        fold_tables(frozen, learned[:30])
    tower = tiny_clip().text_model
    length = tower.embeddings.position_embedding.weight
    tower.embeddings.position_embedding = TwoTables(length)
    assert torch.equal(
        tower(input_ids=questions([9])).pooler_output, tiny_clip().text_model(questions([9])).pooler_output
    )
