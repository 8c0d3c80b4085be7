"""Sharding, shared batch norms, gradient checkpointing, compilation and half precision do not change what is learned.

For modes that must be exact, tests compare float64 results with those of a plain run.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.testing import assert_close

from patchword import AlignmentModule, Objective
from patchword.cli import main
from patchword.contrast import LogitScale
from patchword.distributed import gather, own
from patchword.encoders import HFText, PretrainedPair, TimmImage, TwoTowers
from patchword.encoders.base import Encoder
from patchword.encoders.blocks import blocks
from patchword.encoders.checkpointing import checkpoint_gradients
from patchword.encoders.compilation import compile_towers
from patchword.errors import UserError
from patchword.objectives import CLIP, FLAIR, LOUPE, MGCA, SigLIP
from patchword.training import grad_cache
from patchword.training.fsdp import shard
from patchword.training.sync_batch_norm import SharedBatchNorm, synchronize_batch_norms
from tests import tiny
from tests.ranks import on_ranks

ROOT = Path(__file__).parents[1]
SMALL = [
    *("--data.train_size", "64", "--data.val_size", "16", "--data.num_workers", "0", "--data.batch_size", "16"),
    *("--trainer.accelerator", "cpu", "--trainer.limit_val_batches", "0", "--maps.samples", "0"),
]
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
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
    """Return a module with a tiny ViT and a tiny T5, which have no batch norms."""
    torch.manual_seed(0)
    image = TimmImage("vit_tiny_patch16_224", image_size=64, model_args={**VIT, "proj_drop_rate": dropout})
    t5 = {"model_type": "t5", "num_layers": 2, "d_model": 16, "d_kv": 8, "num_heads": 2, "d_ff": 32}
    text = HFText(config=t5 | {"dropout_rate": dropout}, tokenizer="emoji-scenes")
    return TwoTowers(image, text, embed_dim=16).to(dtype)


def convolutional(
    name: str = "mobilenetv4_conv_small_050", dtype: torch.dtype = torch.float64, **arguments: Any
) -> TwoTowers:
    """Return a module with a tiny network whose batch norms contain activations, and with word embeddings."""
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
    """Return a copy of a complete tensor, also if its parts are on several ranks."""
    return (x.full_tensor() if isinstance(x, DTensor) else x).detach().clone()


def trained(encoder: Encoder, objective: Objective, images: Tensor, captions: list[str]) -> dict[str, Any]:
    """Return losses of three AdamW steps with clipping, the first gradients, and the final weights."""
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
            if isinstance(part, LogitScale):
                part.clamp_()
        found["losses"].append(gather(loss.detach()[None]).mean())
    found["weights"] = {n: full(x) for n, x in model.state_dict().items()}
    return found


def parts(objective: str) -> tuple[TwoTowers, Objective]:
    torch.manual_seed(0)
    built = OBJECTIVES[objective]()
    built.build(16)
    return transformers(), built.double()


def _sharded(rank: int, name: str) -> dict[str, Any]:
    encoder, objective = parts(name)
    shard(encoder, objective, init_device_mesh("cpu", (2, 1), mesh_dim_names=("data_parallel", "tensor_parallel")))
    shards = [p for p in [*encoder.parameters(), *objective.parameters()] if isinstance(p, DTensor)]
    assert len(shards) == len([*encoder.parameters(), *objective.parameters()])
    assert sum(isinstance(block, FSDPModule) for block in blocks(encoder)) == 4
    found = trained(encoder, objective, pixels()[2 * rank : 2 * rank + 2], CAPTIONS[2 * rank : 2 * rank + 2])
    with torch.no_grad():
        texts = encoder.encode_texts(encoder.tokenize(CAPTIONS))  # first, so that it has to gather what it needs
        images = encoder.encode_images(pixels())
        found["map"], found["score"] = objective.align(images, texts), objective.score(images, texts)
        found["text_to_image_score"] = objective.text_to_image_score(images, texts)
        assert_close(objective.scores(images, texts), (found["score"], found["text_to_image_score"]))
    assert all(isinstance(x, DTensor) for x in encoder.state_dict().values())
    return found


@pytest.mark.parametrize("name", OBJECTIVES)
def test_sharded_over_two_ranks_equals_one_process(name: str) -> None:
    """With FSDP2, losses, gradients, their norm, weights, scores, maps and names are equal."""
    encoder, objective = parts(name)
    expected = trained(encoder, objective, pixels(), CAPTIONS)
    images, texts = encoder.encode_images(pixels()), encoder.encode_texts(encoder.tokenize(CAPTIONS))
    expected |= {"score": objective.score(images, texts).detach(), "map": objective.align(images, texts).detach()}
    expected["text_to_image_score"] = objective.text_to_image_score(images, texts).detach()
    for found in on_ranks(_sharded, name):
        assert found.keys() == expected.keys()
        assert_close(found, expected)


def _sharded_and_lean(rank: int) -> dict[str, Tensor]:
    encoder, objective = parts("CLIP")
    checkpoint_gradients(encoder)
    shard(encoder, objective, init_device_mesh("cpu", (2,)))
    tokens = encoder.tokenize(CAPTIONS[2 * rank : 2 * rank + 2])
    texts = grad_cache.encode_texts(encoder, tokens, "all", 1)
    terms = objective(grad_cache.encode_images(encoder, own(pixels()), 1), texts)
    terms["global"].backward()
    return {n: full(p.grad) for n, p in encoder.named_parameters() if p.grad is not None}


def test_sharded_with_chunks_and_gradient_checkpointing() -> None:
    """Sharding with chunks and gradient checkpointing gives the gradients of a plain run."""
    encoder, objective = parts("CLIP")
    loss_of(encoder, objective, pixels(), CAPTIONS).backward()
    expected = {n: p.grad for n, p in encoder.named_parameters() if p.grad is not None}
    for found in on_ranks(_sharded_and_lean):
        assert_close(found, expected)


def _sharded_in_vain(rank: int) -> str:
    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("data_parallel", "tensor_parallel"))
    try:
        shard(*parts("CLIP"), mesh)
    except UserError as error:
        return str(error)
    return "not refused"


def test_tensor_parallelism_is_refused() -> None:
    """Lightning's strategy would use tensor parallelism by default on several devices."""
    assert all("set the strategy's tensor_parallel_size to 1" in message for message in on_ranks(_sharded_in_vain))


NORMS = {
    "BatchNorm1d": lambda: (nn.BatchNorm1d(3, momentum=None), (4, 3)),
    "BatchNorm2d": lambda: (nn.BatchNorm2d(3, affine=False), (4, 3, 2, 2)),
    "BatchNorm3d": lambda: (nn.BatchNorm3d(3, track_running_stats=False), (4, 3, 2, 1, 2)),
    "BatchNormAct2d": lambda: (BatchNormAct2d(3, act_layer=nn.SiLU), (4, 3, 2, 2)),
}


def normalized(norm: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return outputs, gradients and statistics after two training batches, and outputs in evaluation."""
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
    """Outputs, gradients and statistics equal those of the whole batch, also for timm's norms with activations."""
    expected = normalized(*norm_and_input(name))
    if name == "BatchNorm3d":  # has no running statistics, so that evaluation normalizes its batch
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
    """Gradients, weights, statistics and names are equal, and a frozen tower keeps its norms."""
    encoder = convolutional()
    loss_of(encoder, CLIP().double(), pixels(), CAPTIONS).backward()
    gradients = {n: p.grad for n, p in encoder.named_parameters() if p.grad is not None}
    for found, state, names in on_ranks(_shared_encoder):
        assert_close(found, gradients)
        assert_close(state, dict(encoder.state_dict()))
        assert names == [n for n, _ in encoder.named_parameters()]


def saved_bytes(run: Any, encoder: Encoder) -> int:
    """Return the bytes that a forward pass stores for the backward pass, including inputs of checkpointed blocks."""
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
    """Return a tiny pair with SigLIP's architecture."""
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
    """Loss, gradients, dropout and statistics have the same bits, and less is stored."""
    plain, lean = ENCODERS[name](), ENCODERS[name]()
    checkpoint_gradients(lean)
    kept = [saved_bytes(lambda e=e: loss_of(e, CLIP().double(), pixels(), CAPTIONS), e) for e in (plain, lean)]
    assert kept[1] < 0.6 * kept[0]
    assert_close(state_after_a_step(lean), state_after_a_step(plain), rtol=0, atol=0)


def test_gradient_checkpointing_leaves_no_tower_out_in_silence() -> None:
    """A tower without repeated blocks is refused by name, unless it is frozen or a bag of words."""
    with pytest.raises(UserError, match="repeated blocks in RegNet"):
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
    """Stages are replaced by their blocks, and a block with lists of small layers is not split."""
    found = blocks(timm.create_model(name))
    assert len(found) == count
    assert {type(block).__name__ for block in found} == {kind}


def _compiled(rank: int) -> dict[str, int]:
    """Train a compiled encoder and a plain one, and return the compiler's counters."""
    from torch._dynamo.utils import counters

    counters.clear()
    plain, compiled = convolutional(level=2), convolutional(level=2)
    for encoder in (plain, compiled):
        synchronize_batch_norms(encoder)
    checkpoint_gradients(compiled)
    compile_towers(compiled, backend="aot_eager")
    for captions in (["a red apple", "a"], CAPTIONS[:2], CAPTIONS[2:], ["a a a a a a a a a", "a"]):
        for encoder in (plain, compiled):
            encoder.zero_grad()
            loss_of(encoder, CLIP().double(), own(pixels()), captions).backward()
        gradients = [{n: p.grad for n, p in encoder.named_parameters()} for encoder in (plain, compiled)]
        assert_close(gradients[1], gradients[0])
    assert_close(dict(compiled.state_dict()), dict(plain.state_dict()))
    assert not counters["graph_break"]
    graphs = counters["stats"]["unique_graphs"]
    torch._dynamo.reset()
    return {"graphs": graphs}


def test_compiled_towers_change_nothing() -> None:
    """Gradients, statistics over ranks and names are equal, for captions of any length.

    There are three graphs without breaks: images, the first captions, and captions of any length.
    """
    assert on_ranks(_compiled) == [{"graphs": 3}] * 2


def losses(folder: Path, **arguments: Any) -> Tensor:
    """Return the losses of six training steps."""
    settings = {"max_epochs": 1, "limit_val_batches": 0, **arguments}
    tiny.trainer(folder, **settings).fit(tiny.module(CLIP(), dropout=0.0), tiny.data())
    return torch.tensor(pd.read_csv(folder / "logs/version_0/metrics.csv")["train/loss"].dropna().tolist())


def test_mixed_precision_trains_nearly_as_float32(tmp_path: Path) -> None:
    """Every loss is within three percent of float32, but not equal, so the towers run in bfloat16."""
    single, mixed = losses(tmp_path / "32"), losses(tmp_path / "bf16", precision="bf16-mixed")
    assert_close(mixed, single, rtol=0.03, atol=0)
    assert not torch.equal(mixed, single)


def test_half_precision_weights_are_refused(tmp_path: Path) -> None:
    """A temperature in bfloat16 would not change, and objectives with matrices would fail."""
    with pytest.raises(UserError, match="use bf16-mixed"):
        losses(tmp_path, precision="bf16-true")


@pytest.mark.parametrize("name", ["bf16", "gradient_checkpointing", "compile", "ring", "two_pass"])
def test_scaling_configurations_train_a_step(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each configuration works after that of an objective. `compile` is tested elsewhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(TwoTowers, "towers", lambda self: [] if name == "compile" else [self.image, self.text])
    files = [*("--config", str(ROOT / "configs/flair.yaml")), *("--config", str(ROOT / f"configs/scaling/{name}.yaml"))]
    warned = pytest.warns(UserWarning, match="the encoder has batch norms") if name == "two_pass" else nullcontext()
    with warned:
        main(["fit", *files, *SMALL, "--trainer.fast_dev_run", "true", *QUIET])


def fit(folder: Path, name: str, *arguments: str) -> dict[str, Any]:
    """Train on the command line within five minutes, and return the checkpoint."""
    place = ["--trainer.logger.name", name, "--trainer.logger.version", "run"]
    whole = [sys.executable, "-m", "patchword", "fit", "--config", str(ROOT / "configs/sparc.yaml"), *SMALL]
    ended = subprocess.run(
        [*whole, *arguments, *place],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return torch.load(folder / f"runs/{name}/run/checkpoints/last.ckpt", weights_only=True)


def assert_same_training(found: dict[str, Any], expected: dict[str, Any], steps: int) -> None:
    """Check that names, weights and statistics are equal in float32."""
    assert found["global_step"] == expected["global_step"] == steps
    assert_close(found["state_dict"], expected["state_dict"], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_fsdp_trains_resumes_and_saves_one_file(tmp_path: Path) -> None:
    """Two epochs on two processes with ModelParallelStrategy, resumed in between, equal those of one."""
    mixing = ["--config", str(ROOT / "configs/towers/mixing.yaml")]
    fsdp = [*mixing, "--config", str(ROOT / "configs/scaling/fsdp.yaml"), "--data.batch_size", "8"]
    fit(tmp_path, "fsdp", *fsdp, "--trainer.max_epochs", "1")
    checkpoint = tmp_path / "runs/fsdp/run/checkpoints/last.ckpt"
    found = fit(tmp_path, "resumed", *fsdp, "--trainer.max_epochs", "2", "--ckpt_path", str(checkpoint))
    assert_same_training(found, fit(tmp_path, "one", *mixing, "--trainer.max_epochs", "2"), steps=8)
    loaded = AlignmentModule.load_from_checkpoint(checkpoint, weights_only=True)
    assert loaded.objective.scale.log.shape == (1,)


@pytest.mark.slow
def test_ddp_with_batch_norms_equals_one_process(tmp_path: Path) -> None:
    """Two processes with batch 8 end with the weights and statistics of one with batch 16.

    Lightning's `sync_batchnorm` does not change this.
    """
    ddp = ["--config", str(ROOT / "configs/scaling/ddp.yaml"), "--data.batch_size", "8"]
    found = fit(tmp_path, "ddp", *ddp, "--trainer.max_epochs", "1", "--trainer.sync_batchnorm", "true")
    assert_same_training(found, fit(tmp_path, "one", "--trainer.max_epochs", "1"), steps=4)
