"""Sources of maps that run the towers again: their equations, on towers of timm and transformers, and known answers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import cosine_similarity

from patchword import AlignmentModule
from patchword.encoders import HFText, PretrainedPair, TimmImage, TwoTowers
from patchword.encoders.checkpointing import checkpoint_gradients
from patchword.encoders.compilation import compile_towers
from patchword.errors import UserError
from patchword.features import Images
from patchword.maps.banzhaf import banzhaf, word_sets
from patchword.maps.chefer import chefer
from patchword.maps.legrad import legrad
from patchword.maps.pairs import Pairs, word_scores
from patchword.maps.sources import PLAIN_SOURCES, require_sources, tower_maps
from patchword.objectives import CLIP, FILIP
from patchword.shapley.crossmodal import crossmodal_interactions
from tests import planted, tiny
from tests.encoders.conftest import tokenizers  # noqa: F401 - a fixture
from tests.encoders.test_images import from_hf, from_timm
from tests.encoders.test_pair import pair

TEXT = {"model_type": "t5", "num_layers": 0, "d_model": 16}
ATTENTION_SOURCES = ("value", "grad_eclip", "chefer", "legrad")
VIT_SOURCES = (*ATTENTION_SOURCES, "banzhaf")


def pairs_of(encoder, captions=("a red fish", "the sun above a blue book"), image=(0, 1)) -> Pairs:
    """Two noise images with captions, whose words are all wanted."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, 3, *encoder.image_size), generator=generator).to(torch.uint8)
    tokens = encoder.eval().tokenize(list(captions))
    with torch.no_grad():
        texts = encoder.encode_texts(tokens)
    return Pairs(encoder, pixels, torch.tensor(image), texts, tokens, tokens.mask & ~tokens.special)


def two_towers(image, **arguments) -> TwoTowers:
    return TwoTowers(image, HFText(config=TEXT, tokenizer="emoji-scenes"), embed_dim=12, **arguments).eval()


class ByHand:
    """A pre-norm vision transformer of timm, of CLIP or of SigLIP, block by block, with plain attention.

    Args:
        encoder: The encoder with the transformer.
        value_path: Whether tokens attend only to themselves in the last block.
        blocks: The number of first blocks; None for all.
    """

    def __init__(self, encoder, pixels, value_path=False, blocks=None):
        self.weights, self.outputs, self.parts = [], [], []
        if isinstance(encoder, PretrainedPair):
            vision = encoder.model.vision_model
            x = vision.embeddings(encoder.normalize(pixels))
            x = vision.pre_layrnorm(x) if encoder.is_clip else x
            for layer in vision.encoder.layers[:blocks]:
                attention = layer.self_attn
                parts = attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj, attention.num_heads
                x = self.block(x, layer.layer_norm1, parts, layer.layer_norm2, layer.mlp)
            last = layer.layer_norm2, layer.mlp
        else:
            backbone = encoder.image.backbone
            x = backbone.norm_pre(backbone._pos_embed(backbone.patch_embed(encoder.image.normalize(pixels))))
            for layer in backbone.blocks[:blocks]:
                both = layer.attn.qkv
                q, k, v = (
                    lambda y, n=n, both=both: y @ both.weight.chunk(3)[n].T + both.bias.chunk(3)[n] for n in range(3)
                )
                parts = q, k, v, layer.attn.proj, layer.attn.num_heads
                x = self.block(x, layer.norm1, parts, layer.norm2, layer.mlp)
            last = layer.norm2, layer.mlp
        if value_path:
            before, _, _, v, proj = self.parts[-1]
            x = before + proj(v)
            x = x + last[1](last[0](x))
        if isinstance(encoder, PretrainedPair) and not encoder.is_clip:
            self.tokens = vision.post_layernorm(x)
        elif isinstance(encoder, PretrainedPair):
            x = encoder.model.visual_projection(vision.post_layernorm(x))
            self.images = Images(x[:, 0], x[:, 1:], encoder.grid)
        else:
            x = backbone.norm(x)
            self.images = encoder.project_images(x[:, 1:], x[:, 0])

    def block(self, x, norm1, parts, norm2, mlp):
        y = norm1(x)
        q, k, v = (part(y) for part in parts[:3])
        split = [z.unflatten(-1, (parts[4], -1)).transpose(1, 2) for z in (q, k, v)]
        weights = (split[0] @ split[1].mT / split[0].shape[-1] ** 0.5).softmax(-1)
        output = (weights @ split[2]).transpose(1, 2).flatten(2)
        self.weights.append(weights)
        self.outputs.append(output)
        self.parts.append((x, q, k, v, parts[3]))
        x = x + parts[3](output)
        return x + mlp(norm2(x))


@pytest.fixture(params=["timm, class token", "timm, mean", "clip"])
def encoder(request, tokenizers):  # noqa: F811
    torch.manual_seed(0)
    if request.param == "clip":
        return pair("clip", tokenizers).eval()
    sizes = {"depth": 2, "embed_dim": 16, "num_heads": 2}
    image = TimmImage("vit_tiny_patch16_224", image_size=48, model_args=sizes)
    return two_towers(image, image_pool="cls" if "class" in request.param else "mean")


def words_of(pairs):
    """Each wanted token: its image, its text and its place."""
    return [(int(pairs.image[text]), text, place) for text, place in pairs.wanted.nonzero().tolist()]


def test_value_is_the_last_block_without_attention(encoder):
    """The last block of a patch adds its own projected value, and everything after it is as for any patch."""
    pairs = pairs_of(encoder)
    maps, patches = tower_maps("value", CLIP(), pairs), ByHand(encoder, pairs.pixels, value_path=True).images.patches
    assert torch.allclose(
        ByHand(encoder, pairs.pixels).images.patches, encoder.encode_images(pairs.pixels).patches, atol=1e-5
    )
    for image, text, place in words_of(pairs):
        expected = cosine_similarity(pairs.texts.tokens[text, place], patches[image], dim=-1)
        torch.testing.assert_close(maps[text, place], expected, atol=1e-5, rtol=1e-4)


def test_value_of_siglip_is_its_head_on_one_patch(tokenizers):  # noqa: F811
    """The last attention of SigLIP is the head that pools; on its value path, each patch is pooled alone."""
    encoder = pair("siglip", tokenizers).eval()
    pairs = pairs_of(encoder)
    maps, vision = tower_maps("value", CLIP(), pairs), encoder.model.vision_model
    tokens = encoder.encode_images(pairs.pixels).patches
    size, head = tokens.shape[-1], vision.head
    value = tokens @ head.attention.in_proj_weight[2 * size :].T + head.attention.in_proj_bias[2 * size :]
    x = head.attention.out_proj(value)
    patches = x + head.mlp(head.layernorm(x))
    for image, text, place in words_of(pairs):
        expected = cosine_similarity(pairs.texts.tokens[text, place], patches[image], dim=-1)
        torch.testing.assert_close(maps[text, place], expected, atol=1e-5, rtol=1e-4)


def test_grad_eclip_is_a_loop_over_channels(encoder):
    """Values of patches, times the gradients of the score, times min-max cosines of queries and keys, added up."""
    pairs = pairs_of(encoder)
    maps, hand = tower_maps("grad_eclip", CLIP(), pairs), ByHand(encoder, pairs.pixels)
    _, q, k, v, _ = hand.parts[-1]
    count = maps.shape[-1]
    for image, text, place in words_of(pairs):
        score = cosine_similarity(hand.images.pooled[image], pairs.texts.tokens[text, place], dim=0)
        (gradient,) = torch.autograd.grad(score, hand.outputs[-1], retain_graph=True)
        total = torch.zeros(count)
        for query in range(q.shape[1]):
            near = torch.stack([cosine_similarity(q[image, query], k[image, 1 + p], dim=0) for p in range(count)])
            near = (near - near.min()) / (near.max() - near.min())
            total += torch.stack([(gradient[image, query] * near[p] * v[image, 1 + p]).sum() for p in range(count)])
        torch.testing.assert_close(maps[text, place], total.relu().detach(), atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("blocks", [None, 1])
def test_chefer_is_a_product_over_blocks(encoder, blocks):
    """R grows by the positive part of gradient times attention, averaged over heads; rows that matter are averaged."""
    pairs = pairs_of(encoder)
    with torch.enable_grad():
        maps = chefer(CLIP(), pairs, blocks).detach()
    hand = ByHand(encoder, pairs.pixels)
    used = hand.weights[-blocks:] if blocks else hand.weights
    class_token = isinstance(encoder, PretrainedPair) or encoder.image_pool == "cls"
    for image, text, place in words_of(pairs):
        score = cosine_similarity(hand.images.pooled[image], pairs.texts.tokens[text, place], dim=0)
        tokens = hand.weights[0].shape[-1]
        relevance = torch.eye(tokens)
        for weights in used:
            (gradient,) = torch.autograd.grad(score, weights, retain_graph=True)
            relevance = relevance + (gradient[image] * weights[image]).clamp_min(0).mean(0) @ relevance
        rows = (relevance - torch.eye(tokens))[:1] if class_token else (relevance - torch.eye(tokens))[1:]
        torch.testing.assert_close(maps[text, place], rows.mean(0)[1:].detach(), atol=1e-8, rtol=1e-3)


def test_chefer_of_siglip_ends_with_its_head(tokenizers):  # noqa: F811
    """The head that pools the image is the last attention; its one query has the only row of the product."""
    encoder = pair("siglip", tokenizers).eval()
    pairs = pairs_of(encoder)
    every = tower_maps("chefer", CLIP(), pairs)
    with torch.enable_grad():
        last = chefer(CLIP(), pairs, 1).detach()
    hand = ByHand(encoder, pairs.pixels)
    weights, scores = head_scores(hand.tokens, encoder.model.vision_model.head, pairs)
    for (image, text, place), score in zip(words_of(pairs), scores, strict=True):
        steps = []
        for of_block in (*hand.weights, weights):
            (gradient,) = torch.autograd.grad(score, of_block, retain_graph=True)
            steps.append((gradient[image] * of_block[image]).clamp_min(0).mean(0).detach())
        relevance = torch.eye(steps[0].shape[-1])
        for step in steps[:-1]:
            relevance = relevance + step @ relevance
        assert (steps[0] > 0).any()
        torch.testing.assert_close(every[text, place], (steps[-1] @ relevance)[0], atol=1e-10, rtol=1e-3)
        torch.testing.assert_close(last[text, place], steps[-1][0], atol=1e-10, rtol=1e-3)


def head_scores(tokens, head, pairs):
    """The weights of SigLIP's head for tokens of the tower, and the scores of the words with what it pools."""
    parts = zip(head.attention.in_proj_weight.chunk(3), head.attention.in_proj_bias.chunk(3), strict=True)
    size, heads = tokens.shape[-1], head.attention.num_heads
    (wq, bq), (wk, bk), (wv, bv) = parts
    q, k, v = (head.probe @ wq.T + bq).expand(len(tokens), -1, -1), tokens @ wk.T + bk, tokens @ wv.T + bv
    q, k, v = (z.unflatten(-1, (heads, -1)).transpose(1, 2) for z in (q, k, v))
    weights = (q @ k.mT / (size // heads) ** 0.5).softmax(-1)
    x = head.attention.out_proj((weights @ v).transpose(1, 2).flatten(2))
    pooled = (x + head.mlp(head.layernorm(x)))[:, 0]
    words = words_of(pairs)
    return weights, [cosine_similarity(pooled[i], pairs.texts.tokens[text, place], dim=0) for i, text, place in words]


@pytest.mark.parametrize("blocks", [None, 1])
def test_legrad_is_a_loop_over_blocks(encoder, blocks):
    """The positive gradients of attention, for the score after each block, are averaged over blocks, heads and rows."""
    pairs = pairs_of(encoder)
    with torch.enable_grad():
        maps = legrad(CLIP(), pairs, blocks).detach()
    depth = len(ByHand(encoder, pairs.pixels).weights)
    some = range(depth - (blocks or depth), depth)
    expected = torch.zeros_like(maps)
    for block in some:
        hand = ByHand(encoder, pairs.pixels, blocks=block + 1)
        for image, text, place in words_of(pairs):
            score = cosine_similarity(hand.images.pooled[image], pairs.texts.tokens[text, place], dim=0)
            (gradient,) = torch.autograd.grad(score, hand.weights[block], retain_graph=True)
            rows = gradient[image].clamp_min(0)
            expected[text, place] += rows.sum((0, 1))[1:] / (rows.shape[0] * rows.shape[1] * len(some))
    assert expected.any()
    torch.testing.assert_close(maps, expected, atol=1e-8, rtol=1e-3)


def test_legrad_of_siglip_reads_its_head(tokenizers):  # noqa: F811
    """The head pools the tokens after each block; its weights for them are what gradients are of."""
    encoder = pair("siglip", tokenizers).eval()
    pairs = pairs_of(encoder)
    maps = tower_maps("legrad", CLIP(), pairs)
    expected = torch.zeros_like(maps)
    for blocks in (1, 2):
        tokens = ByHand(encoder, pairs.pixels, blocks=blocks).tokens
        weights, scores = head_scores(tokens, encoder.model.vision_model.head, pairs)
        for (image, text, place), score in zip(words_of(pairs), scores, strict=True):
            (gradient,) = torch.autograd.grad(score, weights, retain_graph=True)
            expected[text, place] += gradient[image].clamp_min(0).mean((0, 1)) / 2
    assert expected.any()
    torch.testing.assert_close(maps, expected, atol=1e-8, rtol=1e-3)


def test_grad_cam_of_a_mean_is_a_dot_product():
    """If patches are pooled by a mean, the channels' weights are the gradient of the score by the mean, over P."""
    encoder = two_towers(TimmImage("test_resnet", image_size=64, level=2))
    pairs = pairs_of(encoder)
    maps = tower_maps("grad_cam", CLIP(), pairs)
    features, _ = encoder.image(pairs.pixels)
    for image, text, place in words_of(pairs):
        mean = features[image].mean(0).detach().requires_grad_()
        score = cosine_similarity(encoder.image_adapter(mean), pairs.texts.tokens[text, place], dim=0)
        (gradient,) = torch.autograd.grad(score, mean)
        expected = (features[image] @ gradient / len(features[image])).relu().detach()
        torch.testing.assert_close(maps[text, place], expected, atol=1e-7, rtol=1e-3)


def test_interactions_are_banzhaf_indices():
    """Played with all sets, the fit gives the Banzhaf interaction of each patch and word, for any game."""
    patches, words = word_sets(4, None, 0), word_sets(3, None, 0)
    values = torch.randn(16, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = crossmodal_interactions(values, patches, words)
    for p in range(4):
        for w in range(3):
            expected = sum(
                float(values[i, j]) * (1 if patches[i, p] else -1) * (1 if words[j, w] else -1)
                for i in range(16)
                for j in range(8)
            ) / (8 * 4)
            assert float(found[p, w]) == pytest.approx(expected, abs=1e-12)


def test_interactions_of_samples_are_exact_for_pairs():
    """If the game has no higher interactions, a few more sets than players give it exactly."""
    generator = torch.Generator().manual_seed(0)
    patches = torch.rand(40, 20, generator=generator) < 0.5
    words = torch.rand(12, 5, generator=generator) < 0.5
    true = torch.randn(20, 5, generator=generator, dtype=torch.float64)
    values = patches.double() @ true @ words.double().T + patches.double().sum(1)[:, None] - 3 * words.double().sum(1)
    torch.testing.assert_close(crossmodal_interactions(values, patches, words), true)


def test_banzhaf_of_words_and_not_of_tokens():
    """All tokens of a word have the word's map, and special tokens none."""
    module = planted.planted()
    pairs = replace(pairs_of(module.encoder, ["red fish, red", "sun"]), pixels=torch.stack([planted.image()] * 2))
    maps = banzhaf(module.objective, pairs)
    first, fish, comma, last = (pairs.tokens.spans[0, :, 0].tolist().index(start) for start in (0, 4, 8, 10))
    assert maps[0, first].argmax() == maps[0, last].argmax() == planted.PLACE
    assert maps[0, fish].argmax() != planted.PLACE
    assert not maps[0, comma].any()
    assert not maps[0][pairs.tokens.special[0]].any()


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("source", [*VIT_SOURCES, *PLAIN_SOURCES])
def test_every_source_points_at_the_planted_patch(source, pool):
    """One patch alone decides the score with the word `red`; its place is the maximum of every map."""
    module = planted.planted(pool=pool)
    for place in (0, planted.PLACE, 15):
        shown = Image.fromarray(planted.image(place).permute(1, 2, 0).numpy())
        found = module.inspect(shown, "a red fish", whole=True, sources=[source]).maps[source][1]
        others = found[torch.arange(16) != place]
        assert found[place] > others.max() + 0.1 * (others.max() - others.min()), (place, found)


def test_grad_cam_points_at_the_planted_patch():
    """The same for a tower without attention."""
    module = planted.planted(pool="mean", attention=False)
    shown = Image.fromarray(planted.image().permute(1, 2, 0).numpy())
    assert module.inspect(shown, "red", whole=True, sources=["grad_cam"]).maps["grad_cam"][0].argmax() == planted.PLACE


@pytest.mark.parametrize(
    "name",
    ["test_vit3", "vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3", "eva02_tiny_patch14_224", "dinov3_vit"],
)
def test_towers_of_many_kinds(name):
    """Class tokens, registers, rotary embeddings and no class token: maps are finite and depend on the patch."""
    image = from_hf(name) if name == "dinov3_vit" else from_timm(name)
    encoder = two_towers(image, image_pool="cls" if image.has_class_token else "mean")
    objective = CLIP()
    with torch.inference_mode():
        pairs = pairs_of(encoder)
        for source in ATTENTION_SOURCES:
            maps = tower_maps(source, objective, pairs)[pairs.wanted]
            assert maps.isfinite().all()
            assert (maps.std(-1) > 0).any(), source
    assert all(parameter.requires_grad for parameter in encoder.text.parameters())


def test_a_source_that_a_model_cannot_give_is_refused_first(tokenizers):  # noqa: F811
    """The message says why, and what the model gives."""
    network = two_towers(TimmImage("test_resnet", image_size=64, level=2))
    with pytest.raises(
        UserError, match=r"no maps of grad_eclip, because the image tower computes no attention.*gives.*grad_cam"
    ):
        AlignmentModule(network, CLIP(), map_sources=["align", "grad_eclip"])
    with pytest.raises(UserError, match="no maps of chefer, because the image tower does not attend to all patches"):
        require_sources(["chefer"], two_towers(from_timm("hiera_tiny_224")))
    with pytest.raises(UserError, match="grad_cam, because PretrainedPair pools its images inside its tower"):
        require_sources(["grad_cam"], pair("clip", tokenizers))
    with pytest.raises(UserError, match="grad_cam, because the encoder pools images by image_pool cls"):
        require_sources(["grad_cam"], two_towers(from_timm("test_vit"), image_pool="cls"))
    with pytest.raises(UserError, match="there is no source of maps 'rollout'; there are align, cosine"):
        require_sources(["rollout"], network)
    with pytest.raises(UserError, match="each once, not"):
        require_sources(["value", "value"], network)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_pairs_give_all_sources_of_transformers(kind, tokenizers):  # noqa: F811
    """Each of them depends on the patch. SigLIP's head runs once, so that the attention that is read is used."""
    encoder = pair(kind, tokenizers).eval()
    require_sources(VIT_SOURCES, encoder)
    pairs = pairs_of(encoder)
    for source in VIT_SOURCES:
        assert (tower_maps(source, CLIP(), pairs)[pairs.wanted].std(-1) > 0).any(), source


@pytest.mark.parametrize("name", ["swin", "swin, fused", "cait_xxs24_224", "hiera_tiny_224", "sam2_hiera_tiny"])
def test_towers_without_attention_over_all_patches(name, monkeypatch):
    """Swin and Hiera attend in windows, and CaiT and Swin do not call the function that is read; others still work.

    Swin calls it if timm's experimental option is set.
    """
    if name == "swin, fused":
        monkeypatch.setattr(timm.layers.config, "_USE_FUSED_ATTN", 2)
    encoder = two_towers(from_timm("swin_tiny_patch4_window7_224" if name.startswith("swin") else name))
    reason = "does not attend to all patches" if "fused" in name or "hiera" in name else "computes no attention that"
    for source in ATTENTION_SOURCES:
        with pytest.raises(UserError, match=f"{reason}.* gives align, cosine, dot, grad_cam, banzhaf$"):
            require_sources([source], encoder)
    pairs = pairs_of(encoder)
    assert (tower_maps("grad_cam", CLIP(), pairs)[pairs.wanted].std(-1) > 0).any()


def test_checking_changes_nothing():
    """The check runs the tower once, without touching its running statistics or its mode."""
    network = two_towers(TimmImage("test_resnet", image_size=64, level=2)).train()
    before = {name: x.clone() for name, x in network.state_dict().items()}
    with pytest.raises(UserError):
        require_sources(["value"], network)
    assert all(torch.equal(x, before[name]) for name, x in network.state_dict().items())
    assert all(part.training for part in network.modules() if not isinstance(part, nn.Identity))


def test_maps_do_not_depend_on_the_batch(tokenizers):  # noqa: F811
    """Texts that share an image, and padding, change no map; texts without wanted tokens are skipped."""
    encoder = pair("clip", tokenizers).eval()
    captions, image = ["a red fire truck", "two dogs play", "a photo of an apple, a banana and a green frog"], (1, 0, 1)
    together = pairs_of(encoder, captions, image)
    together.wanted[1] = False
    for source in VIT_SOURCES:
        maps = tower_maps(source, CLIP(), together)
        for text in (0, 2):
            alone = pairs_of(encoder, captions[text : text + 1], (1,))
            length = alone.wanted.shape[1]
            expected = tower_maps(source, CLIP(), alone)[0][alone.wanted[0]]
            torch.testing.assert_close(maps[text, :length][alone.wanted[0]], expected, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("change", [checkpoint_gradients, lambda encoder: compile_towers(encoder, "eager")])
def test_checkpointed_and_compiled_towers(change):
    """Blocks that are recomputed, and towers that torch has compiled, give the same maps."""
    encoder = two_towers(from_timm("test_vit"), image_pool="cls")
    pairs = pairs_of(encoder)
    before = [tower_maps(source, CLIP(), pairs) for source in ATTENTION_SOURCES]
    change(encoder)
    for source, expected in zip(ATTENTION_SOURCES, before, strict=True):
        torch.testing.assert_close(tower_maps(source, CLIP(), pairs), expected, atol=1e-7, rtol=1e-4)


def test_the_word_is_the_text_that_is_scored():
    """For CLIP it is the cosine with the word; for FILIP, the mean over patches, each with its only word."""
    images = Images(torch.randn(3, 8), torch.randn(3, 6, 8), (2, 3))
    words = torch.randn(3, 8)
    torch.testing.assert_close(word_scores(CLIP(), images, words), cosine_similarity(images.pooled, words, dim=-1))
    each = cosine_similarity(images.patches, words[:, None], dim=-1)
    torch.testing.assert_close(word_scores(FILIP(), images, words), each.mean(-1))


def test_measured_in_a_test_run(tmp_path):
    """`map_sources` are measured in a test and drawn, kept in the checkpoint, and not kept if they are the default."""
    sources = [*PLAIN_SOURCES, *ATTENTION_SOURCES]
    module = tiny.exact_module(CLIP(), map_sources=sources)
    assert module.hparams["map_sources"] == sources
    assert "map_sources" not in tiny.module(CLIP()).hparams
    data, trainer = tiny.data(test_size=4, val_size=4), tiny.trainer(tmp_path, max_epochs=1)
    trainer.test(module, data, verbose=False)
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    for source in sources:
        assert 0 <= found[f"test/grounding/content/{source}/auroc"] <= 1
    values = {found[f"test/grounding/content/{source}/auroc"] for source in sources}
    assert len(values) > 4
