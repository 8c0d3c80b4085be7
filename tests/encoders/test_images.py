"""Image towers of many architectures: shapes, patch order, gradients, freezing, sizes and weights."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    BeitConfig,
    BeitModel,
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    SiglipConfig,
    SiglipModel,
)

from patchword.encoders import HFImage, Lora, TimmImage
from patchword.encoders.pixels import Normalize
from patchword.errors import UserError

VIT = {"depth": 2, "embed_dim": 48, "num_heads": 4}
SWIN = {"window_size": 2, "embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1]}
# name -> image size, level, model_args, grid, has class token
TIMM = {
    "test_vit": (64, -1, {}, 4, True),
    "test_vit3": (64, 2, {}, 4, False),
    "test_convnext": (64, 1, {}, 8, False),
    "test_convnext2": (64, -1, {}, 2, False),
    "test_efficientnet": (64, 2, {}, 8, False),
    "test_efficientnet_ln": (64, -1, {}, 2, False),
    "test_resnet": (64, 2, {}, 8, False),
    "test_byobnet": (64, 3, {}, 4, False),
    "mobilenetv4_conv_small_050": (64, 2, {}, 8, False),
    "resnet10t": (64, 1, {}, 16, False),
    "swin_tiny_patch4_window7_224": (64, 1, SWIN, 8, False),
    "vit_small_patch14_reg4_dinov2": (56, -1, VIT, 4, True),
    "vit_small_patch16_dinov3": (64, -1, VIT, 4, True),
    "vit_base_patch16_siglip_224": (64, -1, VIT, 4, False),
    "vit_base_patch16_clip_224": (64, 0, VIT, 4, True),
    "eva02_tiny_patch14_224": (56, -1, VIT, 4, True),
    "cait_xxs24_224": (64, -1, {"depth": 2, "embed_dim": 48}, 4, False),
    "naflexvit_base_patch16_gap": (64, -1, VIT, 4, False),
    "test_vit2": (64, -1, {}, 4, False),
    "beit_base_patch16_224": (64, -1, VIT, 4, True),
    "hiera_tiny_224": (64, -1, {"embed_dim": 16, "stages": (1, 1, 1, 1)}, 2, False),
    "sam2_hiera_tiny": (
        64,
        -1,
        {"embed_dim": 16, "num_heads": 1, "stages": (1,) * 4, "global_att_blocks": ()},
        2,
        False,
    ),
}
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
HF = ["clip_vision_model", "siglip_vision_model", "vit", "dinov2", "dinov2_with_registers", "dinov3_vit"]


def from_timm(name, **arguments):
    size, level, args, _, _ = TIMM[name]
    torch.manual_seed(0)
    return TimmImage(name, **{"image_size": size, "level": level, "model_args": args} | arguments)


def from_hf(name, **arguments):
    torch.manual_seed(0)
    return HFImage(config={"model_type": name, "image_size": 64, "patch_size": 16} | SMALL, **arguments)


@pytest.fixture(params=[*TIMM, *HF])
def tower(request):
    return (from_timm if request.param in TIMM else from_hf)(request.param)


def noise(tower, count=2):
    return torch.randint(0, 256, (count, 3, *tower.image_size), dtype=torch.uint8)


def test_every_architecture(tower):
    assert tower.training
    patches, class_token = tower.eval()(noise(tower))
    assert patches.shape == (2, tower.grid[0] * tower.grid[1], tower.width)
    assert (class_token is not None) == tower.has_class_token
    if class_token is not None:
        assert class_token.shape == (2, tower.width)
    tower.train()
    tower(noise(tower))[0].square().sum().backward()  # every trained parameter affects the patches
    idle = [key for key, p in tower.named_parameters() if not p.requires_grad]
    assert all("mask_token" in key for key in idle)
    assert not [key for key, p in tower.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize("name", TIMM)
def test_grid_and_class_token(name):
    tower = from_timm(name)
    assert tower.grid == (TIMM[name][3],) * 2
    assert tower.has_class_token == TIMM[name][4]


def test_patches_run_row_by_row(tower):
    """Changing a corner changes the patch in that corner most, or in convolutional networks a neighboring patch."""
    tower.eval()
    rows, columns = tower.grid
    row, column = rows - 1, 0
    height, width = tower.image_size[0] // rows, tower.image_size[1] // columns
    dark = torch.full((1, 3, *tower.image_size), 100, dtype=torch.uint8)
    lit = dark.clone()
    lit[:, :, row * height : (row + 1) * height, column * width : (column + 1) * width] = noise(tower, 1)[
        :, :, :height, :width
    ]
    with torch.no_grad():
        change = (tower(lit)[0] - tower(dark)[0]).norm(dim=-1)[0]
    brightest = divmod(int(change.argmax()), columns)
    assert abs(brightest[0] - row) <= (rows > 4)
    assert abs(brightest[1] - column) <= (rows > 4)


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet", "dinov2"])
def test_frozen(name):
    tower = (from_timm if name in TIMM else from_hf)(name, freeze=True)
    nn.ModuleList([tower]).train()
    assert not any(module.training for module in tower.modules())
    before = {key: value.clone() for key, value in tower.state_dict().items()}
    assert not tower(noise(tower))[0].requires_grad
    assert all(torch.equal(before[key], value) for key, value in tower.state_dict().items())


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet", "test_convnext"])
def test_last_level_is_what_timm_calls_features(name):
    tower = TimmImage(name).eval()
    model = timm.create_model(name, num_classes=0).eval()
    model.load_state_dict(tower.backbone.state_dict(), strict=False)
    pixels = noise(tower)
    expected = model.forward_features(tower.normalize(pixels))
    patches, class_token = tower(pixels)
    if name == "test_vit":
        torch.testing.assert_close(patches, expected[:, 1:])
        torch.testing.assert_close(class_token, expected[:, 0])
    elif name == "test_convnext":
        torch.testing.assert_close(patches, expected.flatten(2).mT)
    else:  # the last convolution belongs to the classifier
        assert expected.shape[1] > patches.shape[2] == 64


@pytest.mark.parametrize(
    "name", [name for name in TIMM if "vit" in name and TIMM[name][1] == -1] + ["beit_base_patch16_224"]
)
def test_last_level_of_timm_is_normalized(name):
    """This includes models that apply their last norm only to the mean of their tokens."""
    tower = from_timm(name).eval()
    patches, _ = tower(noise(tower))
    torch.testing.assert_close(patches.std(-1, unbiased=False), torch.ones(patches.shape[:2]), atol=0.03, rtol=0)


# The supported types: one token per patch, computed from images alone.
NORMALIZED = [
    "aimv2_vision_model", "beit", "chinese_clip_vision_model", "clip_vision_model", "deit", "dinov2",
    "dinov2_with_registers", "dinov3_vit", "dpt", "granite_docling_vision", "idefics3_vision", "ijepa",
    "mlcd_vision_model", "pixio", "sapiens2", "siglip_vision_model", "smolvlm_vision", "tipsv2_vision_model", "vit",
    "vit_msn",
]  # fmt: skip
NOT_NORMALIZED = ["data2vec-vision", "radio", "sam3_vit_model"]


@pytest.mark.parametrize("name", [*NORMALIZED, *NOT_NORMALIZED])
def test_patches_come_out_of_the_last_norm(name):
    """For every type, the patches are the output of a norm, except for the three types in the docstring."""
    if name not in CONFIG_MAPPING:
        pytest.skip("not in this version of transformers")
    tower = from_hf(name).eval()
    made = []
    for part in tower.backbone.modules():
        if "Norm" in type(part).__name__:
            part.register_forward_hook(lambda part, inputs, output: made.append(output))
    patches, _ = tower(noise(tower))
    count = patches.shape[1]
    found = any(
        x.shape[-1] == tower.width and torch.equal(x.reshape(2, -1, tower.width)[:, -count:], patches) for x in made
    )
    assert found == (name in NORMALIZED)
    assert all(f"`{name}`" in " ".join(HFImage.__doc__.split()) for name in NOT_NORMALIZED)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_from_a_file(suffix, tmp_path):
    """A classifier in the file is ignored, and position embeddings are interpolated to the image size."""
    model = timm.create_model("test_vit", num_classes=10)
    path = tmp_path / f"model{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": model.state_dict()}, path)
    else:
        from safetensors.torch import save_file

        save_file(model.state_dict(), path)
    same = TimmImage("test_vit", weights=str(path))
    assert same.image_size == (160, 160)
    torch.testing.assert_close(same.backbone.pos_embed, model.pos_embed)
    small = TimmImage("test_vit", weights=str(path), image_size=64)
    assert small.backbone.pos_embed.shape[1] == 17
    torch.testing.assert_close(small.backbone.blocks[0].mlp.fc1.weight, model.blocks[0].mlp.fc1.weight)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_weights_with_other_names_are_refused(name, tmp_path):
    """timm would only log the keys, and leave the model random. The message names the file and an unknown key."""
    path = tmp_path / "model.pth"
    torch.save({f"backbone.{key}": value for key, value in timm.create_model(name).state_dict().items()}, path)
    with pytest.raises(UserError, match=rf"{path} .*{name}.* unknown, first backbone") as raised:
        TimmImage(name, weights=str(path))
    assert "\n" not in str(raised.value)


def without(model, *ends):
    return {key: value for key, value in model.state_dict().items() if not key.endswith(ends)}


PARTS = {
    "a block": ("test_vit", "blocks.5.attn.qkv.weight", None),
    "a block, with adapters": ("test_vit", "blocks.5.attn.qkv.weight", Lora()),
    "the last norm": ("test_vit", "norm.weight", None),
    "a running statistic": ("test_resnet", "layer1.0.bn1.running_var", None),
    "a pooled norm": ("beit_base_patch16_224", "fc_norm.weight", None),
}


@pytest.mark.parametrize("part", PARTS)
def test_weights_that_lack_a_part_are_refused(part, tmp_path):
    """The other parts match."""
    name, missing, lora = PARTS[part]
    size, _, args, *_ = TIMM[name]
    path = tmp_path / "model.pth"
    torch.save(without(from_timm(name, level=-1).backbone, missing), path)
    with pytest.raises(UserError, match=rf"{path} .* 1 are missing, first {missing}"):
        TimmImage(name, weights=str(path), image_size=size, model_args=args, lora=lora)


def test_weights_may_lack_what_is_not_used(tmp_path):
    """The classifier, and layers after the level."""
    path = tmp_path / "model.pth"
    torch.save(without(timm.create_model("test_vit"), "head.weight", "head.bias"), path)
    TimmImage("test_vit", weights=str(path))
    torch.save(without(timm.create_model("test_vit"), "blocks.5.mlp.fc1.weight", "norm.weight"), path)
    TimmImage("test_vit", weights=str(path), level=2)
    with pytest.raises(UserError, match=r"2 are missing"):
        TimmImage("test_vit", weights=str(path))


def test_a_folder_of_timm_without_some_weights_is_refused(tmp_path):
    model = timm.create_model("test_convnext", num_classes=10)
    del model.stages[1].blocks[0].mlp.fc1.bias
    model.stages[1].blocks[0].mlp.fc1.register_parameter("bias", None)
    timm.models.save_for_hf(model, tmp_path)
    with pytest.raises(UserError, match=r"local-dir:.* 1 are missing, first stages\.1\.blocks\.0\.mlp\.fc1\.bias"):
        TimmImage(f"local-dir:{tmp_path}", image_size=64)


@pytest.mark.parametrize("missing", ["pooler.layernorm.weight", "embeddings.patch_embeddings.projection.weight"])
def test_a_folder_of_transformers_without_some_weights_is_refused(missing, tmp_path):
    """transformers would initialize them. BEiT's pooler has the norm that patches pass through."""
    model = BeitModel(BeitConfig(image_size=64, patch_size=16, **SMALL))
    model.save_pretrained(tmp_path, state_dict=without(model, missing))
    with pytest.raises(UserError, match=rf"{tmp_path} .* 1 are missing, first {missing}"):
        HFImage(str(tmp_path))


def test_folder_that_timm_saved(tmp_path):
    model = timm.create_model("test_convnext", num_classes=10)
    timm.models.save_for_hf(model, tmp_path)
    tower = TimmImage(f"local-dir:{tmp_path}", image_size=64)
    torch.testing.assert_close(tower.backbone.stem[0].weight, model.stem[0].weight)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_image_tower_of_a_pair(kind, tmp_path, capfd):
    config, model = {"clip": (CLIPConfig, CLIPModel), "siglip": (SiglipConfig, SiglipModel)}[kind]
    text = SMALL | {"vocab_size": 99, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    vision = SMALL | {"image_size": 64, "patch_size": 16}
    saved = model(config(text_config=text, vision_config=vision)).eval()
    saved.save_pretrained(tmp_path)
    capfd.readouterr()
    tower = HFImage(str(tmp_path)).eval()
    assert "REPORT" not in "".join(capfd.readouterr())
    pixels = noise(tower)
    output = saved.vision_model(tower.normalize(pixels))
    patches, class_token = tower(pixels)
    if kind == "clip":
        torch.testing.assert_close(class_token, output.pooler_output)
        torch.testing.assert_close(patches, saved.vision_model.post_layernorm(output.last_hidden_state[:, 1:]))
    else:
        assert class_token is None
        torch.testing.assert_close(patches, output.last_hidden_state)
    assert HFImage(str(tmp_path), image_size=96)(torch.zeros(1, 3, 96, 96, dtype=torch.uint8))[0].shape == (1, 36, 32)


def test_statistics_of_the_image_processor(tmp_path):
    Dinov2Model(Dinov2Config(**SMALL, image_size=28, patch_size=14)).save_pretrained(tmp_path)
    usual = HFImage(str(tmp_path)).normalize
    torch.testing.assert_close(usual.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))
    processor = {
        "image_processor_type": "BitImageProcessor",
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [1.0, 2.0, 4.0],
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    own = HFImage(str(tmp_path)).normalize
    torch.testing.assert_close(own.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))
    torch.testing.assert_close(own.std.flatten(), torch.tensor([1.0, 2.0, 4.0]))


def test_normalize():
    normalize = Normalize((0.5, 0.25, 0.0), (0.5, 0.25, 1.0))
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    torch.testing.assert_close(normalize(pixels).flatten(), torch.tensor([-1.0, (0.2 - 0.25) / 0.25, 1.0]))
    assert not normalize.state_dict()
    assert normalize.to(torch.bfloat16)(pixels).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "resnet"}, "use TimmImage"),
        ({"model_type": "convnext", "depths": [1] * 4, "hidden_sizes": [8] * 4}, "use another model, or TimmImage"),
        ({"model_type": "videomae"} | SMALL, "use another model, or TimmImage"),
        ({"model_type": "sam_vision_model", "image_size": 64} | SMALL, "TimmImage"),
        ({"model_type": "vitdet"} | SMALL, "TimmImage"),
        ({"model_type": "pixtral"} | SMALL, "TimmImage"),
        ({"model_type": "blip"}, "no class for blip_vision_model alone"),
        ({"model_type": "nothing like it"}, "transformers has no model_type 'nothing like it'"),
        ({"model_type": "vit", "hidden_size": "wide"}, "these values for vit"),
    ],
)
def test_models_that_are_not_image_towers_are_refused(config, message):
    """The message is one short line for every error. Models whose tokens are not patches are refused."""
    with pytest.raises(UserError, match=message) as raised:
        HFImage(config=config, image_size=64)
    assert len(str(raised.value)) < 400
    assert "\n" not in str(raised.value)


def test_messages():
    with pytest.raises(ValueError, match="did you mean resnet18"):
        TimmImage("resnet181")
    with pytest.raises(ValueError, match="pixels must be uint8"):
        Normalize((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))(torch.zeros(1, 3, 2, 2))
    with pytest.raises(ValueError, match="65 x 65: set image_size to a multiple, such as 64"):
        TimmImage("test_vit", image_size=65)
    with pytest.raises(ValueError, match="write hf_hub:google/vit or local-dir"):
        TimmImage("google/vit")
    with pytest.raises(ValueError, match=r"timm cannot build test_vit .*unexpected keyword argument 'deph'"):
        TimmImage("test_vit", model_args={"deph": 1})
    with pytest.raises(ValueError, match="levels 0 to 5"):
        TimmImage("test_vit", level=6)
    with pytest.raises(ValueError, match="no file of weights"):
        TimmImage("test_vit", weights="nowhere.pth")
    with pytest.raises(ValueError, match="no folder /nowhere"):
        TimmImage("local-dir:/nowhere")
    with pytest.raises(ValueError, match="do not divide an image_size of 65"):
        from_hf("vit", image_size=65)
    with pytest.raises(ValueError, match="did you mean vit"):
        HFImage(config={"model_type": "vitt"})
    with pytest.raises(ValueError, match="no folder"):
        HFImage("./nowhere")
