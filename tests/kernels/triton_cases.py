"""Runs the Triton kernels against the float64 references and prints the errors as JSON. A process of its own:
TRITON_INTERPRET=1 has to be set before the kernels are imported, and must not leak into other tests."""

import json
import math
import os

import torch

if __name__ == "__main__":
    assert os.environ.get("TRITON_INTERPRET") == "1" or torch.cuda.is_available()
    from longtake.kernels.backends.contract import Request
    from longtake.kernels.backends.triton_block_sparse import TritonBlockSparse, block_sparse_triton
    from longtake.kernels.backends.triton_dual_scope import TritonDualScope, dual_scope_triton
    from longtake.kernels.masks.basic import DualScope, Mask
    from longtake.kernels.masks.tables import BlockSparse
    from longtake.kernels.plan.tiles import Tile, TileKind, positions_of
    from longtake.kernels.pooling import guided
    from longtake.kernels.pooling.fused import pool_triton
    from longtake.kernels.pooling.guided import prompt_guided_pool3d
    from longtake.kernels.pooling.windows import resolve_windows
    from torch import Tensor

    torch.set_num_threads(1)
    device = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
    errors: dict[str, dict[str, float]] = {}

    def made(*shape: int, seed: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    def truth(q: Tensor, k: Tensor, v: Tensor, mask: Mask, q_pos: Tensor, k_pos: Tensor) -> tuple[Tensor, Tensor]:
        repeat = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        logits = q @ k.mT / math.sqrt(q.shape[-1]) + mask.score(q_pos, k_pos)
        blind = (logits == -math.inf).all(-1, keepdim=True)  # autograd of a softmax over nothing is NaN
        weights = logits.masked_fill(blind, 0).softmax(-1).masked_fill(blind, 0)
        return weights @ v, logits.detach().logsumexp(-1)

    def worst(ours: Tensor, theirs: Tensor) -> float:
        """Largest error over the largest value (at least 1); infinities must be in the same places."""
        ours, theirs = ours.detach().double().cpu(), theirs.detach().double()
        assert not theirs.isnan().any()
        if not torch.equal(ours == -math.inf, theirs == -math.inf) or ours.isnan().any():
            return math.inf
        finite = theirs != -math.inf
        return float((ours - theirs)[finite].abs().max() / theirs[finite].abs().max().clamp(min=1))

    def compare(name: str, outs: tuple[Tensor, Tensor], leaves: list[Tensor], reference: tuple[Tensor, Tensor],
                truths: list[Tensor]) -> None:  # fmt: skip
        seed = made(*reference[0].shape, seed=99)
        grads = torch.autograd.grad(outs[0], leaves, seed.to(outs[0].device, outs[0].dtype))
        expected = torch.autograd.grad(reference[0], truths, seed.double())
        errors[name] = {
            "o": worst(outs[0], reference[0]), "l": worst(outs[1], reference[1]),
            "g": max(worst(mine, right) for mine, right in zip(grads, expected, strict=True)),
        }  # fmt: skip

    dtypes = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    for label, dtype in dtypes.items():
        scopes = {
            "union": DualScope(7, (0, 40, 113), bias_local=0.3, bias_global=-0.2),
            "multiset": DualScope(7, (0, 40, 113), "multiset", bias_local=0.3, bias_global=-0.2),
            "window": DualScope(0),
            "global": DualScope(3, (5, 77), bias_local=-math.inf),
        }
        for case, scope in scopes.items():
            if label != "fp32" and case not in ("union", "multiset"):
                continue
            # rank with frames 70..139 of 210; halo and global keys lie elsewhere in memory
            total, own = (210, torch.arange(70, 139))
            distant = [index for index in scope.global_indices if index not in range(70 - 7, 139 + 7)]
            shared = torch.tensor(distant, dtype=torch.int64)
            halo = torch.cat([torch.arange(70 - 7, 70), torch.arange(139, 139 + 7)])
            spans = [own, halo] + ([shared] if len(shared) else [])
            groups = (4, 2) if label == "fp32" else (2, 1)  # the interpreter runs heads one by one
            heads, key_heads, width, value = (*groups, 20, 24) if case == "union" else (1, 1, 32, 32)
            q = made(1, heads, len(own), width, seed=1).to(device, dtype).requires_grad_()
            flat = [
                made(1, key_heads, len(span), d, seed=10 + i).to(device, dtype).requires_grad_()
                for i, (span, d) in enumerate((span, d) for span in spans for d in (width, value))
            ]
            pieces = [(k, v, span) for k, v, span in zip(flat[::2], flat[1::2], spans, strict=True)]
            outs = dual_scope_triton(q, pieces, scope, own)
            truths = [x.detach().cpu().double().requires_grad_() for x in (q, *flat)]
            keys, values = torch.cat(truths[1::2], 2), torch.cat(truths[2::2], 2)
            reference = truth(truths[0], keys, values, scope, own, torch.cat(spans))
            compare(f"dual {case} {label}", outs, [q, *flat], reference, truths)
        for case, (bq, bk, rows, cols, heads, key_heads) in {
            "64": (64, 64, 100, 140, 2, 2), "hip": (16, 8, 97, 97, 4, 2), "one": (1, 1, 70, 65, 2, 1),
        }.items():  # fmt: skip
            if label != "fp32" and case != "hip":
                continue
            if label != "fp32":
                heads, key_heads = 2, 1
            generator = torch.Generator().manual_seed(3)
            index = torch.rand(heads, -(-rows // bq), -(-cols // bk), generator=generator) < 0.3
            index[:, -1] = False  # the last queries see nothing
            mask = BlockSparse(bq, bk, index)
            q = made(2, heads, rows, 32, seed=1).to(device, dtype).requires_grad_()
            k, v = (made(2, key_heads, cols, 32, seed=s).to(device, dtype).requires_grad_() for s in (2, 3))
            truths = [x.detach().cpu().double().requires_grad_() for x in (q, k, v)]
            places = torch.arange(rows), torch.arange(cols)
            outs = block_sparse_triton(q, k, v, mask)
            compare(f"block {case} {label}", outs, [q, k, v], truth(*truths, mask, *places), truths)
        for mode, temperature in (("ppllava", 0.01), ("local", 1.0)):
            x = made(2, 5, 4, 5, 260, seed=1).to(device, dtype).requires_grad_()
            logits = (3 * made(2, 5, 4, 5, seed=2)).to(device)
            frame_mask = torch.tensor([[True] * 5, [True, False, False, False, True]], device=device)
            with torch.no_grad():
                poisoned = x.masked_fill(~frame_mask[:, :, None, None, None], math.nan)
            x = poisoned.requires_grad_()
            settings = {"kernel": (2, 3, 4), "stride": (2, 2, 3), "tail": "keep"}
            windows = resolve_windows((5, 4, 5), **settings)
            scores = logits.masked_fill(~frame_mask[:, :, None, None], -math.inf)
            if mode == "ppllava":
                g = scores.flatten(1).softmax(1).view(scores.shape)
                scores = g.masked_fill(scores == -math.inf, -math.inf)
            scores = scores.requires_grad_()
            out = pool_triton(x, scores, windows, temperature)
            right_x = x.detach().cpu().double().requires_grad_()
            right_s = scores.detach().cpu().double().requires_grad_()
            name = "weights" if mode == "ppllava" else "logits"
            right = prompt_guided_pool3d(
                right_x, **{name: right_s}, **settings, weight_mode=mode, layout="bthwc", temperature=temperature,
                frame_mask=frame_mask.cpu(),
            )  # fmt: skip
            both = (out, out.detach()), [x, scores], (right, right.detach()), [right_x, right_s]
            compare(f"pool {mode} {label}", *both)
            # the same through the operator, from the guide's logits; the interpreter's tensors are on no GPU
            asked = settings | {"weight_mode": mode, "layout": "bthwc", "temperature": temperature}
            tokens, guide = x.detach().requires_grad_(), logits.detach().requires_grad_()
            wide = [y.detach().cpu().double().requires_grad_() for y in (tokens, guide)]
            right = prompt_guided_pool3d(wide[0], logits=wide[1], frame_mask=frame_mask.cpu(), **asked)
            if device == "cpu":
                whole, guided.not_fused = guided.not_fused, lambda *args: None
            assert guided.not_fused(tokens, guide.float(), windows) is None
            out = prompt_guided_pool3d(tokens, logits=guide, frame_mask=frame_mask, **asked)
            if device == "cpu":
                guided.not_fused = whole
            compare(f"guided {mode} {label}", (out, out.detach()), [tokens, guide], (right, right.detach()), wide)

    # a score that is NaN shows in its window, as it does without the kernel, and nowhere else
    spoilt = torch.zeros(1, 2, 2, 4, device=device)
    spoilt[0, 0, 1, 2] = math.nan
    shown = pool_triton(torch.ones(1, 2, 2, 4, 3, device=device), spoilt, resolve_windows((2, 2, 4), (2, 2, 2)), 1.0)
    assert shown[0, 0, 0, 1].isnan().all() and (shown[0, 0, 0, 0] == 1).all()

    # the backend protocol: one tile, a mask, positions as runs
    scope = DualScope(5, (0, 60), bias_global=0.5)
    sparse = BlockSparse(8, 8, torch.rand(2, 13, 13, generator=torch.Generator().manual_seed(1)) < 0.4)
    for backend, mask in ((TritonDualScope(), scope), (TritonBlockSparse(), sparse)):
        request = Request(torch.float32, 16, 16, device, frozenset({TileKind.DENSE}), grad=True, mask=mask)
        assert backend.refuses(request) is None, backend.refuses(request)
        assert "masks other" in (backend.refuses(Request(torch.float32, 16, 16, device)) or "")
        assert "dtype" in (backend.refuses(Request(torch.float64, 16, 16, device, mask=mask)) or "")
        runs = (range(3, 100, 2),), (range(0, 40), range(50, 100))
        places = [positions_of(run) for run in runs]
        tile = Tile((0, 49), ((0, 90),), TileKind.DENSE, 49 * 90, mask=mask, q_runs=runs[0], k_runs=runs[1])
        q, k, v = (made(1, 2, n, 16, seed=s).to(device) for n, s in ((49, 1), (90, 2), (90, 3)))
        truths = [x.cpu().double().requires_grad_() for x in (q, k, v)]
        out, lse = backend.forward(q, k, v, tile, 0.25)
        right_out, right_lse = truth(*truths, mask, *places)
        seed = made(1, 2, 49, 16, seed=9)
        grads = backend.backward(seed.to(device), q, k, v, out, lse, tile, 0.25)
        expected = torch.autograd.grad(right_out, truths, seed.double())
        errors[f"backend {backend.name} fp32"] = {
            "o": worst(out, right_out), "l": worst(lse, right_lse),
            "g": max(worst(a, b) for a, b in zip(grads, expected, strict=True)),
        }  # fmt: skip
    refused = TritonDualScope().refuses(Request(torch.float32, 16, 16, device, mask=DualScope(2, edge="zero")))
    assert refused is not None and "edge zero" in refused
    print(json.dumps(errors))
