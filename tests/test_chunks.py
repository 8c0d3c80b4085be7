"""Two passes compute the loss and gradients of the whole batch in the memory of a chunk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.testing import assert_close

from patchword import AlignmentModule
from patchword.data.augmentation import Views
from patchword.data.batch import Batch, collate
from patchword.errors import UserError
from patchword.objectives import CLIP, FILIP, SPARC
from patchword.training import grad_cache
from tests import tiny
from tests.objectives.variants import RANDOM, VARIANTS


def batch(size: int = 10) -> Batch:
    scenes = tiny.data(views=Views(local_crops=1, distort=False)).split("train")
    return collate([scenes[i] for i in range(size)])


def step(module: AlignmentModule, batch: Batch, bf16: bool = False) -> dict[str, Tensor]:
    """Return the loss and all gradients. As in Lightning, only the forward pass is under autocast."""
    module.train()
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        images, texts, tokens = module(batch)
        loss = torch.stack(list(module.losses(*module.supply(images, texts, tokens, batch)).values())).sum()
    module.zero_grad()
    loss.backward()
    return {"loss": loss.detach()} | {n: p.grad for n, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("size", [1, 4, 10, 64])
@pytest.mark.parametrize("variant", [name for name in VARIANTS if not name.startswith(RANDOM)])
def test_chunks_equal_the_whole_batch(variant: str, size: int) -> None:
    """Loss and gradients are equal for every objective, with small, uneven and large chunks."""
    if size != 4 and "-" in variant:
        pytest.skip("one size for switches")
    make = VARIANTS[variant]
    whole = step(tiny.exact_module(make()).double(), batch())
    assert_close(step(tiny.exact_module(make(), chunk_size=size).double(), batch()), whole)


def test_dropout_draws_the_same_in_both_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients belong to the same dropout masks as the loss, so they equal those of one pass."""
    found = step(tiny.exact_module(SPARC(), dropout=0.3, chunk_size=4).double(), batch())
    monkeypatch.setattr(grad_cache, "checkpoint", lambda encode, *parts, **_: encode(*parts))
    kept = step(tiny.exact_module(SPARC(), dropout=0.3, chunk_size=4).double(), batch())
    assert_close(found, kept)
    assert not torch.equal(kept["loss"], step(tiny.exact_module(SPARC()).double(), batch())["loss"])


def test_random_numbers_go_on_as_after_one_pass() -> None:
    """The second pass restores the random generator, so runs stay reproducible."""
    step(tiny.exact_module(CLIP(), dropout=0.3, chunk_size=4), batch())
    after = torch.get_rng_state()
    module = tiny.exact_module(CLIP(), dropout=0.3, chunk_size=4).train()
    torch.manual_seed(1)
    module(batch())
    assert torch.equal(torch.get_rng_state(), after)


def test_batch_norms_count_a_chunk_once() -> None:
    """Running statistics are updated only in the first pass."""
    counted = []
    for grad in (True, False):
        module = tiny.module(CLIP(), chunk_size=4).train()
        with torch.set_grad_enabled(grad):
            images, texts, _ = module(batch(8))
        if grad:
            sum(module.losses(images, texts).values()).backward()
        counted.append({name: x for name, x in module.named_buffers() if "running" in name or "num_batches" in name})
    assert_close(*counted)
    assert {int(x) for name, x in counted[0].items() if "num_batches" in name} == {2}


def kept(module: AlignmentModule, batch: Batch) -> int:
    """Return the bytes of all tensors that the graph stores for the backward pass, without parameters."""
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    seen: dict[int, Tensor] = {}

    def pack(x: Tensor) -> Tensor:
        if x.untyped_storage().data_ptr() not in own:
            seen[x.untyped_storage().data_ptr()] = x
        return x

    with saved_tensors_hooks(pack, lambda x: x):
        images, texts, tokens = module(batch)
        loss = torch.stack(list(module.losses(*module.supply(images, texts, tokens, batch)).values())).sum()
    assert loss.requires_grad
    return sum(x.untyped_storage().nbytes() for x in seen.values())


def test_memory_is_that_of_a_chunk() -> None:
    """Between the passes, only features and pixels of eight chunks are stored, and no activations."""
    module = tiny.exact_module(CLIP()).train()
    one, eight = kept(module, batch(8)), kept(module, batch(64))
    assert eight > 7 * one
    assert kept(tiny.exact_module(CLIP(), chunk_size=8).train(), batch(64)) < 1.2 * one


def test_mixed_precision_is_that_of_the_first_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second pass runs outside autocast, in the backward pass, and must enable bfloat16 again."""
    found = step(tiny.exact_module(FILIP(), chunk_size=4), batch(), bf16=True)
    whole = step(tiny.exact_module(FILIP()), batch())
    monkeypatch.setattr(grad_cache, "checkpoint", lambda encode, *parts, **_: encode(*parts))
    kept = step(tiny.exact_module(FILIP(), chunk_size=4), batch(), bf16=True)
    assert_close(found, kept)
    assert not torch.allclose(found["loss"], whole["loss"], rtol=1e-6)


class Remember(Callback):
    """Record the norm of the clipped gradient and the learning rate of every step."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float]] = []

    def on_before_zero_grad(self, trainer: object, module: AlignmentModule, optimizer: torch.optim.Optimizer) -> None:
        norms = [p.grad.norm() for p in module.parameters() if p.grad is not None]
        self.seen.append((float(torch.stack(norms).norm()) if norms else 0.0, optimizer.param_groups[0]["lr"]))


def test_training_with_clipping_and_schedule_ends_in_the_same_weights(tmp_path: Path) -> None:
    """Six steps of a Trainer give the same norms, learning rates and weights with and without chunks."""
    ends, seen = [], []
    for name, size in ("whole", None), ("chunks", 4):
        remember, module = Remember(), tiny.exact_module(SPARC(), chunk_size=size).double()
        arguments = {"max_epochs": 1, "gradient_clip_val": 0.1, "limit_val_batches": 0, "precision": "64-true"}
        tiny.trainer(tmp_path / name, remember, **arguments).fit(module, tiny.data())
        ends.append(module.state_dict())
        seen.append(torch.tensor(remember.seen, dtype=torch.double))
    assert len(seen[0]) >= 6
    assert seen[0][:, 0].max() <= 0.1001
    assert_close(seen[1], seen[0])
    assert_close(ends[1], ends[0], rtol=1e-5, atol=1e-7)


def test_batch_norms_in_chunks_are_warned_of(tmp_path: Path) -> None:
    """A warning says that batch norms see only a chunk."""
    with pytest.warns(UserWarning, match=r"batch norms, and model\.chunk_size is 8"):
        tiny.trainer(tmp_path, max_steps=1, max_epochs=-1, limit_val_batches=0).fit(
            tiny.module(CLIP(), chunk_size=8), tiny.data()
        )


def test_accumulation_is_warned_of(tmp_path: Path) -> None:
    """The warning recommends chunks of an equally large batch, which give the exact loss."""
    with pytest.warns(
        UserWarning, match=r"adds no negatives.*multiply data\.batch_size by 2 and set model\.chunk_size"
    ):
        tiny.trainer(tmp_path, accumulate_grad_batches=2, max_steps=1, max_epochs=-1, limit_val_batches=0).fit(
            tiny.module(CLIP()), tiny.data()
        )


def test_a_chunk_of_nothing_is_refused() -> None:
    """chunk_size must be at least 1."""
    with pytest.raises(UserError, match="chunk_size must be 1 or more"):
        tiny.module(CLIP(), chunk_size=0)
