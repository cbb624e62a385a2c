"""Prefill over ranks: the logits of one process, whatever the number of ranks, with pooled films and without."""

import pytest
import torch
from longtake.errors import UserError
from longtake.video.reading.over_ranks import prefill_over_ranks
from longtake.video.reading.pool import pool
from ranks import run_ranks
from reading_vlms import FAMILY_NAMES, prompt, vlm

SETTINGS = [None, {"kernel": (1, 2, 2)}]


def read(rank, world, names):
    group = torch.distributed.group.WORLD
    found = {}
    for name in names:
        model, inputs = vlm(name), prompt(name)
        for number, settings in enumerate(SETTINGS):
            if settings is None:
                one = prefill_over_ranks(model, group, **inputs)
            else:
                with pool(model, **settings):
                    one = prefill_over_ranks(model, group, **inputs)
            held = one.cache.layers[0].keys.shape[2]
            found[name, number] = (one.logits, len(one.piece), held)
    return found


def stock(name, settings):
    model, inputs = vlm(name), prompt(name)
    with torch.no_grad():
        if settings is None:
            return model(**inputs).logits
        with pool(model, **settings):
            return model(**inputs).logits


@pytest.mark.distributed
@pytest.mark.parametrize(("world", "names"), [(1, ["llava"]), (2, ["llava", "qwen3_vl"]), (3, FAMILY_NAMES)])
def test_p8_prefill_over_ranks_is_that_of_one_process(world, names):
    found = run_ranks(read, world, names)
    for name in names:
        for number, settings in enumerate(SETTINGS):
            whole = stock(name, settings)
            for each in found:
                assert (each[name, number][0] - whole[:, -1]).abs().max() <= 1e-4 * whole.abs().max()
            pieces = [each[name, number][1] for each in found]
            assert sum(pieces) == whole.shape[1] and [each[name, number][2] for each in found] == pieces


def test_p8_a_model_read_over_ranks_is_what_it_was_and_padding_is_refused():
    model, inputs = vlm("llava"), prompt("llava")
    before = model(**inputs).logits
    one = prefill_over_ranks(model, None, **inputs)
    assert (one.logits - before[:, -1]).abs().max() <= 1e-4 and one.piece == range(before.shape[1])
    assert torch.equal(model(**inputs).logits, before)
    with pytest.raises(UserError, match="padding"):
        prefill_over_ranks(model, None, **prompt("llava", 2))
