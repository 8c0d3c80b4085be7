"""Maps of phrases use the right tokens and have the right values."""

import re

import pytest
import torch

from patchword.data.batch import collate
from patchword.data.scenes import EmojiScenes
from patchword.data.scenes.tokenizer import scene_tokenizer
from patchword.encoders.base import FUNCTION_WORDS, Encoder, Tokens
from patchword.encoders.tokenizer import CaptionTokenizer
from patchword.features import Images, Texts
from patchword.maps.phrases import (
    SOURCES,
    center_map,
    chance_maps,
    phrase_keys,
    phrase_maps,
    phrase_texts,
    queries,
    query_tokens,
    upsample,
)
from patchword.objectives import CLIP, SPARC
from tests.metrics.examples import GRID, scenes


class Words(Encoder):
    """An encoder with one token per word, whose embeddings depend on the word alone or also on its caption."""

    embed_dim, image_size, grid = 4, (15, 16), GRID

    def __init__(self, longest: int = 12, context: float = 0.0) -> None:
        super().__init__()
        self.longest, self.context = longest, context

    def tokenize(self, captions):
        words = [caption.split(" ") for caption in captions]
        length = min(self.longest, max(map(len, words)))
        spans = torch.zeros(len(captions), length, 2, dtype=torch.long)
        ids = torch.zeros(len(captions), length, dtype=torch.long)
        for row, its_words in enumerate(words):
            start = 0
            for column, word in enumerate(its_words[:length]):
                spans[row, column] = torch.tensor([start, start + len(word)])
                ids[row, column] = sum(map(ord, word))
                start += len(word) + 1
        mask = ids > 0
        truncated = torch.tensor([len(w) > length for w in words])
        return Tokens(list(captions), ids, mask, ~mask, spans, truncated, torch.zeros_like(mask))

    def encode_images(self, pixels):
        patches = torch.randn(len(pixels), 12, 4, generator=torch.Generator().manual_seed(1))
        return Images(patches.mean(1), patches, GRID)

    def encode_texts(self, tokens, selection="all"):
        x = torch.sin(tokens.ids[..., None] * torch.tensor([0.3, 0.7, 1.1, 1.3]))
        x = x + self.context * (tokens.ids * tokens.mask).sum(-1)[:, None, None] / 1000
        return Texts(x.mean(1), x, tokens.select(selection))


def ask(policy, batch=None, encoder=None, selection="all"):
    batch, encoder = batch or scenes(4), encoder or Words()
    tokens = encoder.tokenize(batch.captions)
    texts = encoder.encode_texts(tokens, selection)
    images = encoder.encode_images(batch.images)
    return queries(policy, batch, images, texts, tokens, encoder, selection)


def test_policies_ask_for_their_words():
    """The policy decides whether articles inside a phrase are part of its query."""
    content, span, alone = (ask(policy).query[1] for policy in ("content", "span", "alone"))
    assert content.nonzero()[:, 0].tolist() == [5, 6]
    assert span.nonzero()[:, 0].tolist() == [4, 5, 6]
    assert alone.nonzero()[:, 0].tolist() == [1, 2]


def test_a_phrase_of_function_words_asks_for_all_of_them():
    """Phrases without a content word, such as `the one on top`, still have a map."""
    batch = scenes(1)
    start = batch.captions[0].index("the")
    batch.phrase_span[1] = torch.tensor([start, start + 3])
    assert ask("content", batch).query[1].nonzero()[:, 0].tolist() == [4]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("policy", ["content", "span", "alone"])
def test_maps_have_a_row_per_phrase(source, policy):
    """Every source gives one map for each phrase."""
    asked = ask(policy)
    assert phrase_maps(source, CLIP(), asked).shape == (10, 12)
    assert asked.kept.all()


def test_a_phrase_is_the_mean_of_its_tokens():
    """Cosine and dot product equal a loop over phrases, each with its own image."""
    batch, encoder = scenes(3), Words()
    asked = ask("content", batch)
    images = encoder.encode_images(batch.images)
    tokens = encoder.encode_texts(encoder.tokenize(["red", "cup"])).tokens[:, 0]
    n = 3  # `a red cup` of the second image
    dot = sum(images.patches[1] @ token for token in tokens) / 2
    cosine = sum(torch.nn.functional.cosine_similarity(images.patches[1], token[None]) for token in tokens) / 2
    torch.testing.assert_close(phrase_maps("dot", CLIP(), asked)[n], dot)
    torch.testing.assert_close(phrase_maps("cosine", CLIP(), asked)[n], cosine)
    torch.testing.assert_close(phrase_maps("align", CLIP(), asked)[n], cosine)


def test_query_tokens_outside_the_training_mask_are_evaluated():
    """`span` includes articles that training excluded. Their rows of `align` must not be zero."""
    content, every = (phrase_maps("align", SPARC(), ask("span", selection=s)) for s in ("content", "all"))
    torch.testing.assert_close(content, every)
    torch.testing.assert_close(content.sum(-1), torch.ones(10))


def test_alone_leaves_the_context_out():
    """It differs from `content` only if the embeddings of tokens depend on their caption."""
    for context, same in ((0.0, True), (1.0, False)):
        content, alone = (
            phrase_maps("dot", CLIP(), ask(p, encoder=Words(context=context))) for p in ("content", "alone")
        )
        assert torch.allclose(content, alone, atol=1e-5) == same


def test_truncated_phrases_are_dropped():
    """A phrase that is cut off in the middle is not measured by its remaining words."""
    asked = ask("content", encoder=Words(longest=5))
    assert asked.kept.tolist() == [True, False, False, True, False] * 2
    assert (phrase_maps("align", CLIP(), asked)[~asked.kept] == 0).all()


def test_no_phrases():
    """A batch without phrases is accepted under every policy."""
    for policy in ("content", "span", "alone"):
        asked = ask(policy, scenes(2, phrases=0))
        assert [phrase_maps(source, SPARC(), asked).shape for source in SOURCES] == [(0, 12)] * 5


def test_half_precision_is_widened():
    """Maps are float32 under autocast, so cosines near 1 still differ."""
    asked = ask("span")
    expected = phrase_maps("cosine", CLIP(), asked)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(phrase_maps("cosine", CLIP(), asked), expected, rtol=0, atol=0)


def test_chance_knows_the_phrase_only():
    """The noise of a phrase is the same in any batch, order or rank. It is uniform and differs between phrases."""
    keys = torch.tensor([[5, 0], [5, 1], [6, 0], [2**40, 3]])
    maps = chance_maps(keys, 12)
    assert torch.equal(chance_maps(keys.flip(0), 12).flip(0), maps)
    assert torch.equal(chance_maps(keys[2:3], 20)[0, :12], maps[2])
    assert len(maps.unique()) == maps.numel()
    many = chance_maps(torch.cartesian_prod(torch.arange(200), torch.arange(5)), 64)
    assert 0 <= many.min() < 0.001
    assert 0.999 < many.max() < 1
    torch.testing.assert_close(many.histc(10, 0, 1) / many.numel(), torch.full((10,), 0.1), atol=0.005, rtol=0)
    assert torch.corrcoef(many)[0, 1:].abs().mean() < 0.15


def test_keys_name_the_phrase_in_its_sample():
    """Positions count within the sample, so they do not depend on the batch."""
    assert phrase_keys(scenes(3, first_id=7)).tolist() == [
        [7, 0],
        [7, 1],
        [7, 2],
        [8, 0],
        [8, 1],
        [9, 0],
        [9, 1],
        [9, 2],
    ]
    assert phrase_texts(scenes(2)) == ["a red cup", "the blue book", "a snail", "a red cup", "the blue book"]


def test_center_map_is_symmetric():
    """The maximum is in the middle, and mirrored patches are equal, also on a grid that is not square."""
    center = center_map((3, 4)).view(3, 4)
    assert torch.equal(center, center.flip(0))
    assert torch.equal(center, center.flip(1))
    assert center.argmax() in (5, 6)


def test_upsample_is_torchs_and_keeps_equals_equal():
    """Upsampling is torch's bilinear one, and rounding must not give a constant map a maximum."""
    maps = torch.randn(3, 12)
    expected = torch.nn.functional.interpolate(maps.view(3, 1, *GRID), (15, 16), mode="bilinear", align_corners=False)
    torch.testing.assert_close(upsample(maps, GRID, (15, 16)), expected[:, 0])
    assert len(upsample(torch.full((1, 12), 0.1), GRID, (37, 41)).unique()) == 1


@pytest.mark.parametrize("longest", [8, 64])
def test_query_tokens_of_a_real_tokenizer(longest):
    """On emoji scenes, query tokens are the words or content words of a phrase, and truncated phrases have none."""
    batch = collate([EmojiScenes("val", 20)[i] for i in range(20)])
    tokenizer = CaptionTokenizer(scene_tokenizer(), longest)
    tokens = tokenizer(batch.captions)
    for content in (False, True):
        asked = query_tokens(tokens, batch.phrase_caption, batch.phrase_span, content)
        for n, text in enumerate(phrase_texts(batch)):
            row = batch.phrase_caption[n]
            words = [word for word in re.findall(r"\w+", text) if not content or word not in FUNCTION_WORDS]
            whole = len(re.findall(r"\w+|[^\w\s]", batch.captions[row][: batch.phrase_span[n, 1]])) <= longest
            found = tokenizer.tokenizer.convert_ids_to_tokens(tokens.ids[row][asked[n]].tolist())
            assert found == (words if whole else [])


def test_baselines_of_several_samples():
    """Baselines do not depend on the batch or the policy, and the center prior is equal for all samples."""
    together, spans = ask("content"), ask("span", scenes(4))
    alone = ask("content", scenes(1, seed=9))  # the first sample again, with other pixels
    expected = phrase_maps("chance", CLIP(), together)
    assert torch.equal(phrase_maps("chance", CLIP(), spans), expected)
    assert torch.equal(phrase_maps("chance", CLIP(), alone), expected[:3])
    assert torch.equal(phrase_maps("center_prior", CLIP(), together), center_map(GRID).expand(10, -1))


def test_phrases_of_several_captions_have_different_keys():
    """Positions count through all captions of a sample, so that no phrase is dropped as a repeat."""
    batch = scenes(2)
    batch.caption_image = torch.tensor([0, 0])
    batch.ids = batch.ids[:1]
    assert phrase_keys(batch).tolist() == [[0, n] for n in range(5)]
