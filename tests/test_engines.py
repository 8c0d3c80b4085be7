"""Ways to run: sharded, with shared batch norms, with activations computed again, compiled, in half precision.

None of them changes what is learned. Where they must be exact, tests compare float64 with the plain run.
"""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.testing import assert_close

from patchword import Objective
from patchword.batch_norm import SharedBatchNorm, synchronize_batch_norms
from patchword.contrast import Scale
from patchword.distributed import gather, own
from patchword.encoders import HFText, PretrainedPair, TimmImage, TwoTowers
from patchword.encoders.base import Encoder
from patchword.encoders.blocks import blocks
from patchword.encoders.checkpointing import checkpoint_gradients
from patchword.errors import InputError
from patchword.objectives import CLIP, FLAIR, LOUPE, MGCA, SigLIP
from patchword.sharding import shard
from tests.ranks import on_ranks

CAPTIONS = ["a red apple", "a snail next to a green frog", "a blue umbrella", "two dogs and a yellow ball"]
VIT = {"patch_size": 16, "embed_dim": 24, "depth": 2, "num_heads": 3}
OBJECTIVES = {
    "CLIP": CLIP,
    "SigLIP": SigLIP,
    "FLAIR": FLAIR,
    "MGCA": MGCA,
    "LOUPE": lambda: LOUPE(estimator="neural", samples=20, certainty=0.1),
}


def transformers(dropout: float = 0.0, dtype: torch.dtype = torch.float64) -> TwoTowers:
    """A tiny ViT and a tiny T5: no batch norms."""
    torch.manual_seed(0)
    image = TimmImage("vit_tiny_patch16_224", image_size=64, model_args={**VIT, "proj_drop_rate": dropout})
    t5 = {"model_type": "t5", "num_layers": 2, "d_model": 16, "d_kv": 8, "num_heads": 2, "d_ff": 32}
    text = HFText(config=t5 | {"dropout_rate": dropout}, tokenizer="emoji-scenes")
    return TwoTowers(image, text, embed_dim=16).to(dtype)


def convolutional(
    name: str = "mobilenetv4_conv_small_050", dtype: torch.dtype = torch.float64, **arguments: Any
) -> TwoTowers:
    """A tiny network with batch norms that contain activations, and word embeddings."""
    torch.manual_seed(0)
    image = TimmImage(name, image_size=64, **arguments)
    words = {"model_type": "t5", "num_layers": 0, "d_model": 16, "dropout_rate": 0.0}
    text = HFText(config=words, tokenizer="emoji-scenes")
    return TwoTowers(image, text, embed_dim=16).to(dtype)


def pixels(count: int = 4) -> Tensor:
    return torch.randint(256, (count, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def loss_of(encoder: Encoder, objective: Objective, images: Tensor, captions: list[str]) -> Tensor:
    torch.manual_seed(0)
    terms = objective(encoder.encode_images(images), encoder.encode_texts(encoder.tokenize(captions)))
    return torch.stack(list(terms.values())).sum()


def full(x: Tensor) -> Tensor:
    """A copy of all of it, wherever its parts are."""
    return (x.full_tensor() if isinstance(x, DTensor) else x).detach().clone()


def trained(encoder: Encoder, objective: Objective, images: Tensor, captions: list[str]) -> dict[str, Any]:
    """Losses of three AdamW steps with clipping, gradients of the first, and the weights that they end with."""
    model = nn.ModuleDict({"encoder": encoder, "objective": objective})
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [[p for p in parameters if p.ndim >= 2], [p for p in parameters if p.ndim < 2]]
    optimizer = torch.optim.AdamW(
        [{"params": groups[0]}, {"params": groups[1], "weight_decay": 0.0}], lr=1e-2, weight_decay=0.1
    )
    found: dict[str, Any] = {"losses": [], "norms": []}
    for step in range(3):
        loss = loss_of(encoder, objective, images, captions)
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            found["gradients"] = {n: full(p.grad) for n, p in model.named_parameters() if p.grad is not None}
        found["norms"].append(full(nn.utils.clip_grad_norm_(parameters, 0.1)))
        optimizer.step()
        for part in objective.modules():
            if isinstance(part, Scale):
                part.clamp_()
        found["losses"].append(gather(loss.detach()[None]).mean())
    found["weights"] = {n: full(x) for n, x in model.state_dict().items()}
    return found


def parts(objective: str) -> tuple[TwoTowers, Objective]:
    torch.manual_seed(0)
    built = OBJECTIVES[objective]()
    built.setup(16)
    return transformers(), built.double()


def _sharded(rank: int, name: str) -> dict[str, Any]:
    encoder, objective = parts(name)
    shard(encoder, objective, init_device_mesh("cpu", (2, 1), mesh_dim_names=("data_parallel", "tensor_parallel")))
    shards = [p for p in [*encoder.parameters(), *objective.parameters()] if isinstance(p, DTensor)]
    assert len(shards) == len([*encoder.parameters(), *objective.parameters()])
    assert sum(isinstance(block, FSDPModule) for block in blocks(encoder)) == 4
    found = trained(encoder, objective, pixels()[2 * rank : 2 * rank + 2], CAPTIONS[2 * rank : 2 * rank + 2])
    with torch.no_grad():
        images, texts = encoder.encode_images(pixels()), encoder.encode_texts(encoder.tokenize(CAPTIONS))
        found["score"], found["map"] = objective.score(images, texts), objective.align(images, texts)
        found["text_score"] = objective.text_score(images, texts)
    assert all(isinstance(x, DTensor) for x in encoder.state_dict().values())
    return found


@pytest.mark.parametrize("name", OBJECTIVES)
def test_sharded_over_two_ranks_equals_one_process(name: str) -> None:
    """FSDP2: losses, gradients, their clipped norm, three AdamW steps, scores and maps, names of the weights."""
    encoder, objective = parts(name)
    expected = trained(encoder, objective, pixels(), CAPTIONS)
    images, texts = encoder.encode_images(pixels()), encoder.encode_texts(encoder.tokenize(CAPTIONS))
    expected |= {"score": objective.score(images, texts).detach(), "map": objective.align(images, texts).detach()}
    expected["text_score"] = objective.text_score(images, texts).detach()
    for found in on_ranks(_sharded, name):
        assert found.keys() == expected.keys()
        assert_close(found, expected)


NORMS = {
    "BatchNorm1d": lambda: (nn.BatchNorm1d(3, momentum=None), (4, 3)),
    "BatchNorm2d": lambda: (nn.BatchNorm2d(3, affine=False), (4, 3, 2, 2)),
    "BatchNorm3d": lambda: (nn.BatchNorm3d(3, track_running_stats=False), (4, 3, 2, 1, 2)),
    "BatchNormAct2d": lambda: (BatchNormAct2d(3, act_layer=nn.SiLU), (4, 3, 2, 2)),
}


def normalized(norm: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Outputs, gradients and running statistics after two batches in training; outputs in evaluation."""
    x = x.clone().requires_grad_()
    outputs = norm(x), norm(x.square())
    (outputs[0] ** 3 + outputs[1].sin()).sum().backward()
    state = {n: v.clone() for n, v in norm.state_dict().items()}
    gradients = {f"{n}.grad": p.grad for n, p in norm.named_parameters()}
    return {"first": outputs[0], "second": outputs[1], "x.grad": x.grad, "eval": norm.eval()(x), **state, **gradients}


def norm_and_input(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    norm, shape = NORMS[name]()
    for parameter in norm.parameters():
        nn.init.uniform_(parameter, 0.5, 2.0)
    return nn.Sequential(norm).double(), torch.randn(shape, dtype=torch.float64) * 3 + 5


def _shared_norm(rank: int, name: str) -> dict[str, Tensor]:
    norm, x = norm_and_input(name)
    synchronize_batch_norms(norm)
    shared = norm[0]
    synchronize_batch_norms(norm)
    # Lightning's `sync_batchnorm: true` calls this one.
    assert nn.SyncBatchNorm.convert_sync_batchnorm(norm)[0] is shared
    assert isinstance(shared, SharedBatchNorm)
    found = normalized(norm, own(x))
    whole = ("first", "second", "x.grad", "eval")
    return {
        n: gather(v.detach()) if n in whole else gather(v[None]).sum(0) if n.endswith("grad") else v
        for n, v in found.items()
    }


@pytest.mark.parametrize("name", NORMS)
def test_batch_norms_of_two_ranks_are_one(name: str) -> None:
    """Outputs, gradients and running statistics of the whole batch; the activation inside timm's norms stays."""
    expected = normalized(*norm_and_input(name))
    if name == "BatchNorm3d":  # has no running statistics, so that evaluation normalises its batch
        expected.pop("eval")
    for found in on_ranks(_shared_norm, name):
        found.pop("eval") if name == "BatchNorm3d" else None
        assert_close(found, expected)


def _shared_encoder(rank: int) -> tuple[dict[str, Tensor], dict[str, Tensor], list[str]]:
    encoder = convolutional()
    frozen = convolutional(freeze=True)
    synchronize_batch_norms(encoder)
    synchronize_batch_norms(frozen)
    assert not any(isinstance(part, SharedBatchNorm) for part in frozen.modules())
    assert not any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in encoder.modules())
    objective = CLIP().double()
    loss_of(encoder, objective, own(pixels()), CAPTIONS[2 * rank : 2 * rank + 2]).backward()
    gradients = {n: gather(p.grad[None]).mean(0) for n, p in encoder.named_parameters() if p.grad is not None}
    return gradients, dict(encoder.state_dict()), [n for n, _ in encoder.named_parameters()]


def test_convolutional_encoder_on_two_ranks_equals_one_process() -> None:
    """Gradients, weights, running statistics and names; a frozen tower keeps its norms."""
    encoder = convolutional()
    loss_of(encoder, CLIP().double(), pixels(), CAPTIONS).backward()
    gradients = {n: p.grad for n, p in encoder.named_parameters() if p.grad is not None}
    for found, state, names in on_ranks(_shared_encoder):
        assert_close(found, gradients)
        assert_close(state, dict(encoder.state_dict()))
        assert names == [n for n, _ in encoder.named_parameters()]


def saved_bytes(run: Any, encoder: Encoder) -> int:
    """Bytes that a forward pass keeps for the backward pass, the inputs of checkpointed blocks included."""
    kept: dict[int, Tensor] = {}
    own_storages = {x.untyped_storage().data_ptr() for x in [*encoder.parameters(), *encoder.buffers()]}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x  # which also keeps the address from being used again
        return x

    def keep_input(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        keep(inputs[0])

    hooks = [block.register_forward_pre_hook(keep_input) for block in blocks(encoder)]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        run()
    for hook in hooks:
        hook.remove()
    return sum(x.untyped_storage().nbytes() for pointer, x in kept.items() if pointer not in own_storages)


def state_after_a_step(encoder: Encoder) -> dict[str, Any]:
    loss = loss_of(encoder, CLIP().double(), pixels(), CAPTIONS)
    loss.backward()
    gradients = {n: p.grad for n, p in encoder.named_parameters()}
    return {"loss": loss.detach(), "gradients": gradients, "state": dict(encoder.state_dict())}


ENCODERS = {
    "transformers": lambda: transformers(dropout=0.1),
    "batch norms": convolutional,
    "ConvNeXt": lambda: convolutional("test_convnext"),
    "Swin": lambda: convolutional("swin_tiny_patch4_window7_224", model_args=SWIN),
    "SigLIP": lambda: pretrained_pair(),
}
SWIN = {"depths": (1, 2), "embed_dim": 24, "num_heads": (1, 1), "window_size": 4, "drop_path_rate": 0.2}


def pretrained_pair() -> PretrainedPair:
    """SigLIP's architecture, tiny."""
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = {
        "model_type": "siglip",
        "text_config": small | {"max_position_embeddings": 16, "projection_size": 16},
        "vision_config": small | {"image_size": 64, "patch_size": 16},
    }
    return PretrainedPair(config=config, tokenizer="emoji-scenes").double()


@pytest.mark.parametrize("name", ENCODERS)
def test_gradient_checkpointing_changes_memory_alone(name: str) -> None:
    """Loss, gradients, dropout and running statistics are the plain encoder's, to the bit; it keeps less."""
    plain, lean = ENCODERS[name](), ENCODERS[name]()
    checkpoint_gradients(lean)
    kept = [saved_bytes(lambda e=e: loss_of(e, CLIP().double(), pixels(), CAPTIONS), e) for e in (plain, lean)]
    assert kept[1] < 0.6 * kept[0]
    assert_close(state_after_a_step(lean), state_after_a_step(plain), rtol=0, atol=0)


def test_gradient_checkpointing_leaves_no_tower_out_in_silence() -> None:
    """A tower that repeats nothing is refused by name; a frozen one and a bag of words need nothing."""
    with pytest.raises(InputError, match="no repeated blocks in RegNet"):
        checkpoint_gradients(convolutional("regnety_002"))
    checkpoint_gradients(convolutional("regnety_002", freeze=True))


@pytest.mark.parametrize(
    ("name", "count", "kind"),
    [
        ("vit_tiny_patch16_224", 12, "Block"),
        ("convnext_atto", 12, "ConvNeXtBlock"),
        ("swin_tiny_patch4_window7_224", 12, "SwinTransformerBlock"),
        ("resnet50", 16, "Bottleneck"),
        ("focalnet_tiny_srf", 12, "FocalNetBlock"),
    ],
)
def test_blocks(name: str, count: int, kind: str) -> None:
    """Stages give way to their blocks; a block stays whole, although it contains lists of small layers."""
    found = blocks(timm.create_model(name))
    assert len(found) == count
    assert {type(block).__name__ for block in found} == {kind}
