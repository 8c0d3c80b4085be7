"""Images of any shape: pixels, patches and embeddings equal those of the libraries' own processors and models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from timm.data.naflex_transforms import get_image_size_for_seq
from torch.testing import assert_close
from transformers import AutoModel, Siglip2ImageProcessor
from transformers.models.siglip2.image_processing_siglip2 import get_image_size_for_max_num_patches

from patchword.data.pixels import NativePreprocessing, Preprocessing, View, native_grid
from patchword.encoders import HFImage, HFText, PretrainedPair, TimmImage, TwoTowers
from patchword.encoders.naflex import patch_mask
from patchword.errors import UserError
from tests.encoders.pretrained import TOWER, photo, save_naflex

CONFIGS = Path(__file__).parents[2] / "configs"
SHAPES = [(500, 375), (375, 500), (640, 427), (240, 320), (97, 61), (30, 30), (900, 450), (400, 880)]
PATCH, MOST = 32, 20  # at most 20 patches of 32 x 32 pixels, such as 4 x 5


@pytest.fixture(scope="module")
def folder(tokenizers, tmp_path_factory):
    """A SigLIP 2 NaFlex in the format of transformers."""
    return str(save_naflex(tmp_path_factory.mktemp("naflex"), tokenizers["unigram"], PATCH, MOST))


def seen(encoder, shapes):
    """The pixels that an encoder gets of one photo of each shape."""
    views = [encoder.preprocessing.view(*shape, encoder.image_size[0]) for shape in shapes]
    return torch.stack([view.image(photo(*shape)) for view, shape in zip(views, shapes, strict=True)])


@pytest.mark.parametrize("most", [1, 20, 256, 784])
def test_shapes_are_those_of_the_libraries(most):
    """Rows and columns equal those of transformers and of timm for shapes of photographs, and for extreme ones."""
    generator = torch.Generator().manual_seed(0)
    sides = (torch.rand(200, 2, generator=generator) * 8).exp().ceil().int().tolist()
    for width, height in [*SHAPES, (1, 1), (1, 3000), (20_000, 15_000), *sides]:
        found = native_grid(width, height, 16, most, 10_000)
        expected = get_image_size_for_max_num_patches(height, width, 16, most)
        assert (found[0] * 16, found[1] * 16) == expected, (width, height)
        assert found[0] * found[1] <= most
        if max(width, height) < 15_000 and 0.02 < width / height < 50:
            assert get_image_size_for_seq((height, width), 16, most)[1] == expected, (width, height)


def test_a_long_image_is_scaled_down_to_the_square():
    """Its longer side fills the square, and it keeps its aspect ratio."""
    view = NativePreprocessing(patch_size=16, max_num_patches=256).view(2000, 500, 384)
    assert view.shape == (6 * 16, 24 * 16)
    assert NativePreprocessing(patch_size=16, max_num_patches=256).square == 384


def test_boxes_follow_the_image():
    """Boxes are scaled by the image's own factors and cut at its own border, not at that of the square."""
    view = View((0.0, 0.0, 100.0, 50.0), 64, shape=(32, 48))
    assert view.box((50.0, 25.0, 200.0, 200.0)) == (24.0, 16.0, 48.0, 32.0)
    assert view.box((100.0, 0.0, 120.0, 20.0)) is None
    pixels = view.image(Image.new("RGB", (100, 50), "white"))
    assert (pixels[:, :32, :48] == 255).all()
    assert not pixels[:, 32:].any()
    assert not pixels[:, :, 48:].any()


def test_embeddings_are_those_of_transformers(folder):
    """Photos of several shapes in one batch have the embeddings of transformers' own processor and model."""
    encoder, model = PretrainedPair(folder).eval(), AutoModel.from_pretrained(folder).eval()
    assert encoder.image_size == (192, 192)
    inputs = Siglip2ImageProcessor.from_pretrained(folder)([photo(*shape) for shape in SHAPES], return_tensors="pt")
    with torch.no_grad():
        found = encoder.encode_images(seen(encoder, SHAPES))
        expected = model.vision_model(**inputs)
        assert_close(found.pooled, model.get_image_features(**inputs).pooler_output, atol=1e-5, rtol=1e-4)
    assert found.shapes.tolist() == inputs["spatial_shapes"].tolist()
    assert len({tuple(shape) for shape in found.shapes.tolist()}) > 4
    mask = inputs["pixel_attention_mask"].bool()
    assert_close(found.patches[found.mask], expected.last_hidden_state[mask], atol=1e-5, rtol=1e-4)
    tower = HFImage(folder).eval()
    with torch.no_grad():
        patches, class_token = tower(seen(tower, SHAPES))
    assert class_token is None
    assert_close(patches[found.mask], found.patches[found.mask])
    assert not patches[~found.mask].any()


def test_texts_are_those_of_transformers(folder):
    """Captions are padded to the full length, and all positions are attended to, as for SigLIP."""
    encoder, model = PretrainedPair(folder).eval(), AutoModel.from_pretrained(folder).eval()
    tokens = encoder.tokenize(["a red fire truck", "two dogs"])
    assert tokens.ids.shape == (2, 16)
    with torch.no_grad():
        expected = model.get_text_features(input_ids=tokens.ids).pooler_output
        assert_close(encoder.encode_texts(tokens).pooled, expected)
        assert_close(HFText(folder).eval()(tokens), model.text_model(input_ids=tokens.ids).last_hidden_state)


def test_an_image_alone_and_in_a_batch(folder):
    """Embeddings depend neither on other images, nor on the size of the square, nor on the pixels of padding."""
    encoder = PretrainedPair(folder).eval()
    pixels = seen(encoder, SHAPES)
    noise = torch.randint(0, 256, pixels.shape, dtype=torch.uint8)
    noisy = torch.where(pixels[:, 3:].expand_as(pixels) > 0, pixels, noise)
    noisy[:, 3] = pixels[:, 3]
    larger = PretrainedPair(folder, image_size=288).eval()
    with torch.no_grad():
        whole, other = encoder.encode_images(pixels), encoder.encode_images(noisy)
        wide = larger.encode_images(seen(larger, SHAPES))
        for i in range(len(SHAPES)):
            alone = encoder.encode_images(pixels[i : i + 1])
            assert_close(alone.pooled[0], whole.pooled[i])
            assert_close(alone.patches[0][alone.mask[0]], whole.patches[i][whole.mask[i]])
    assert_close(other.pooled, whole.pooled)
    fits = (wide.shapes == whole.shapes).all(1)
    assert fits.sum() > 4
    assert_close(wide.pooled[fits], whole.pooled[fits])


def test_max_num_patches_is_respected(folder):
    tower = HFImage(folder, max_num_patches=9)
    assert tower.image_size == (128, 128)
    assert (patch_mask(seen(tower, SHAPES), tower.grid).sum(1) <= 9).all()


def test_the_packaged_configuration_is_a_naflex_pair(folder):
    """`configs/pretrained/siglip2_naflex.yaml` builds the pair, with the model of the test in place of the hub's."""
    config = yaml.safe_load((CONFIGS / "pretrained/siglip2_naflex.yaml").read_text())["model"]["encoder"]
    assert config["class_path"] == "PretrainedPair"
    encoder = PretrainedPair(**config["init_args"] | {"model": folder})
    assert encoder.preprocessing == NativePreprocessing("native", 1.0, "bilinear", PATCH, 256)


def test_squares_need_no_mask(folder):
    """A NaFlex model also takes squares without padding, such as the windows of a segmentation."""
    encoder = PretrainedPair(folder, image_size=128).eval()
    square = seen(encoder, [(64, 64)])
    assert (square[:, 3] == 255).all()
    with torch.no_grad():
        masked, plain = encoder.encode_images(square), encoder.encode_images(square[:, :3])
    assert plain.mask is None
    assert_close((masked.pooled, masked.patches), (plain.pooled, plain.patches))


def two_towers(folder, tokenizers, **options):
    text = HFText(
        config={"model_type": "bert", "max_position_embeddings": 12} | TOWER, tokenizer=tokenizers["wordpiece"]
    )
    torch.manual_seed(0)
    return TwoTowers(HFImage(folder), text, embed_dim=8, **options)


def test_two_towers_pool_only_patches(folder, tokenizers):
    """The mean is that of the image's own patches, and all parameters get a gradient."""
    encoder = two_towers(folder, tokenizers)
    pixels = seen(encoder, SHAPES)
    images = encoder.encode_images(pixels)
    features, _ = encoder.image(pixels)
    for i in range(len(SHAPES)):
        assert_close(images.pooled[i], encoder.image_adapter(features[i][images.mask[i]].mean(0)))
    (images.pooled.sum() + images.patches[images.mask].sum()).backward()
    assert not [key for key, p in encoder.image.named_parameters() if p.requires_grad and p.grad is None]


SIZES = {"embed_dim": 16, "depth": 2, "num_heads": 2}


@pytest.mark.parametrize("name", ["naflexvit_base_patch16_gap", "naflexvit_so150m2_patch16_reg1_gap"])
def test_timm(name):
    """The features of each photo are those of timm's model on the photo without padding."""
    torch.manual_seed(0)
    tower = TimmImage(name, max_num_patches=20, model_args=SIZES).eval()
    assert tower.image_size == (96, 96)
    pixels = seen(tower, SHAPES)
    mask = patch_mask(pixels, tower.grid)
    with torch.no_grad():
        patches, class_token = tower(pixels)
        assert class_token is None
        for i in range(len(SHAPES)):
            rows, columns = mask[i].unflatten(0, tower.grid).any(1).sum(), mask[i].unflatten(0, tower.grid).any(0).sum()
            alone = tower.normalize(pixels[i : i + 1, :3, : rows * 16, : columns * 16])
            expected = tower.backbone.forward_intermediates(alone, indices=[1], norm=True, intermediates_only=True)[0]
            if tower.has_pooled_norm:
                expected = tower.backbone.fc_norm(expected.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            assert_close(patches[i][mask[i]], expected[0].flatten(1).mT, atol=1e-5, rtol=1e-4)


def test_messages(folder, tokenizers):
    """Models without NaFlex refuse its options and its pixels, and name the key."""
    for make in (
        lambda: TimmImage("vit_tiny_patch16_224", max_num_patches=64, model_args=SIZES),
        lambda: HFImage(config={"model_type": "vit", "image_size": 32} | TOWER, max_num_patches=64),
    ):
        with pytest.raises(UserError, match="max_num_patches is for NaFlex models"):
            make()
    with pytest.raises(UserError, match="max_num_patches must be 1 or more"):
        HFImage(folder, max_num_patches=0)
    with pytest.raises(UserError, match=r"resize_mode is native.*NaFlex"):
        Preprocessing().with_resize_mode("native")
    own = PretrainedPair(folder).preprocessing
    assert own.with_resize_mode("native") is own.with_resize_mode("backbone") is own
    assert own.with_resize_mode("stretch").view(30, 20, 16).shape is None
    image = TimmImage("vit_tiny_patch16_224", image_size=48, model_args=SIZES)
    encoder = TwoTowers(image, two_towers(folder, tokenizers).text, embed_dim=8)
    with pytest.raises(UserError, match=r"data\.resize_mode"):
        encoder.encode_images(torch.zeros(1, 4, 48, 48, dtype=torch.uint8))
