"""What public code computes otherwise: a formula of our own for each row of docs/objectives/ports.md.

The formulas are written from what the code computes; none of its lines is copied. A test shows the option with which
patchword computes the same, or that the results differ, and in which direction.
"""

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, logsigmoid
from torch.testing import assert_close
from torchvision.ops import roi_align

from patchword import Images, Texts
from patchword.contrast import cross_entropies
from patchword.errors import UserError
from patchword.features import map_tensors
from patchword.objectives import CLIP, FGCLIP, FGCLIP2, FILIP, FLAIR, MGCA, PACL, SPARC, GLoRIA
from patchword.objectives.mgca import sinkhorn
from patchword.ops import cosine, normalize
from patchword.shapley import Game, brute_force_pair_interactions, pair_interactions
from patchword.training.needs import coverage
from tests.golden import with_scale
from tests.objectives.variants import DIM, build, pairs


def features(batch: int = 5, each: int = 1, padded: bool = True, length: int = 4) -> tuple[Images, Texts]:
    """Random pairs in float64, with `each` captions per image; without padding, all captions have `length` tokens."""
    images, texts = pairs(batch=batch * each, length=length, dtype=torch.float64)
    texts = map_tensors(texts, lambda x: x.detach())
    if not padded:
        texts = replace(texts, mask=torch.ones_like(texts.mask))
    return map_tensors(images, lambda x: x.detach())[:batch], texts


def longer(texts: Texts, more: int = 3) -> Texts:
    """The texts with `more` positions of padding that hold random vectors, as the outputs of an encoder do."""
    padded = texts.padded(texts.mask.shape[1] + more)
    noise = torch.randn(padded.tokens.shape, generator=torch.Generator().manual_seed(7), dtype=padded.tokens.dtype)
    return replace(padded, tokens=torch.where(padded.mask[..., None], padded.tokens, noise))


def own(z: Tensor) -> Tensor:
    """The mean cross-entropy of the rows of z, where the target of row i is i."""
    return cross_entropy(z, torch.arange(len(z)))


def both(z: Tensor) -> Tensor:
    return (own(z) + own(z.T)) / 2


def grouped(tokens: Tensor, patches: Tensor, sigma: float, guard: float = 0.0) -> Tensor:
    """The unit vector of each token's group of patches: SPARC's equations (2) to (5)."""
    s = tokens @ patches.mT
    low, high = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    a = (s - low) / (high - low + guard)
    a = torch.where(a < sigma, 0.0, a)
    return normalize(a / a.sum(-1, keepdim=True) @ patches)


def per_token(z: Tensor) -> Tensor:
    """The cross-entropies of each token of z [B, L, L], averaged over both directions."""
    target = torch.arange(z.shape[-1]).expand(z.shape[:2])
    return (cross_entropy(z, target, reduction="none") + cross_entropy(z.mT, target, reduction="none")) / 2


# Several ports


def test_a_gather_without_other_gradients_divides_them_by_the_ranks() -> None:
    """Each rank computes the whole loss, but its gradient reaches only its own rows; DDP then takes the mean."""
    images, texts = features(batch=6)
    objective = CLIP().double()

    def gradients(rows: slice) -> tuple[Tensor, ...]:
        mine = torch.zeros(6, 1, dtype=torch.bool)
        mine[rows] = True
        x, y = images.pooled.requires_grad_(), texts.pooled.requires_grad_()
        seen = [torch.where(mine, z, z.detach()) for z in (x, y)]
        loss = objective(replace(images, pooled=seen[0]), replace(texts, pooled=seen[1]))["global"]
        return torch.autograd.grad(loss, (x, y, objective.scale.log))

    ranks = [gradients(slice(start, start + 2)) for start in (0, 2, 4)]
    mean = [torch.stack(parts).mean(0) for parts in zip(*ranks, strict=True)]
    x, y, scale = gradients(slice(None))
    assert_close(mean, [x / 3, y / 3, scale])


def test_an_exponential_before_the_logarithm_overflows() -> None:
    """log(exp(z)) is infinite in float32 above z = 88, which an unbounded temperature can reach."""
    x = torch.eye(4)
    exps = (100 * x @ x.T).exp()
    assert (-exps.diagonal().log() + exps.sum(1).log()).isnan().all()
    images, texts = Images(x, x[:, None], (1, 1)), Texts(x, x[:, None], torch.ones(4, 1).bool())
    assert CLIP(temperature=0.01)(images, texts)["global"].isfinite()


# SPARC


def x_clip_sparc(images: Images, texts: Texts, k: float) -> Tensor:
    """one-june/x-clip: padded logits are 0, all logits are scaled, and padded rows count."""
    c = grouped(texts.tokens, images.patches, 1 / images.patches.shape[1])
    real = texts.mask[:, :, None] & texts.mask[:, None, :]
    z = (k * normalize(texts.tokens) @ c.mT).masked_fill(~real, 0) * real.numel() / real.sum()
    return per_token(z).mean()


def test_x_clip_sparc_is_ours_without_padding() -> None:
    images, texts = features(padded=False)
    objective = with_scale(SPARC(), math.e)
    assert_close(x_clip_sparc(images, texts, math.e), objective(images, texts)["local"])


def test_x_clip_sparc_grows_with_padding() -> None:
    """More padding makes the port's loss larger and does not change ours."""
    images, texts = features()
    objective = with_scale(SPARC(), math.e)
    losses = [x_clip_sparc(images, longer(texts, more), math.e).item() for more in (0, 3, 6)]
    assert losses == sorted(losses)
    assert losses[2] > 2 * losses[0]
    assert_close(objective(images, longer(texts)), objective(images, texts))


def tpeat_sparc(images: Images, texts: Texts, sigma: float, k: float) -> Tensor:
    """tpeat/clip-finegrained-alignment: cosines, and -inf in the rows and columns of padding."""
    s = cosine(texts.tokens, images.patches)
    low, high = s.amin(-1, keepdim=True), s.amax(-1, keepdim=True)
    a = (s - low) / (high - low)
    c = normalize(torch.where(a < sigma, 0.0, a) @ images.patches)
    real = texts.mask[:, :, None] & texts.mask[:, None, :]
    losses = per_token((k * normalize(texts.tokens) @ c.mT).masked_fill(~real, -torch.inf))
    return (losses * texts.mask).sum() / texts.mask.sum()


def test_tpeat_sparc_is_ours_without_padding() -> None:
    images, texts = features(padded=False)
    objective = with_scale(SPARC(threshold=0.5, similarity="cosine"), 1.0)
    assert_close(tpeat_sparc(images, texts, 0.5, 1.0), objective(images, texts)["local"])


def test_tpeat_sparc_is_nan_with_padding() -> None:
    """A row of -inf has no softmax, and NaN times a mask of 0 is NaN."""
    images, texts = features()
    objective = with_scale(SPARC(threshold=0.5, similarity="cosine"), 1.0)
    assert tpeat_sparc(images, texts, 0.5, 1.0).isnan()
    assert objective(images, texts)["local"].isfinite()


def test_tpeat_multiplies_by_the_temperature() -> None:
    """With 1/tau = 0.07, no embeddings at all move the loss by more than 0.14 from that of equal logits."""
    images, texts = features(padded=False)
    perfect = Images(images.pooled, texts.tokens, (2, 2))
    for x in (images, perfect):
        assert (tpeat_sparc(x, texts, 0.5, 0.07) - math.log(4)).abs() <= 2 * 0.07
    with pytest.raises(UserError, match="temperature must lie in"):
        SPARC(temperature=1 / 0.07)


@pytest.mark.parametrize("guard", [0.0, 1e-10])
def test_a_constant_image_divides_by_zero(guard: float) -> None:
    """A small number in the first denominator only moves 0/0 to the second one."""
    images, texts = features()
    same = replace(images, patches=images.patches[:, :1].expand(-1, 6, -1).contiguous())
    assert grouped(torch.ones(5, 1, DIM).double(), torch.ones(5, 6, DIM).double(), 0.1, guard).isnan().all()
    assert SPARC().double()(same, texts)["local"].isfinite()


# DreamLIP


def dreamlip(captions: Tensor, patches: Tensor, sigma: float, k: float) -> Tensor:
    """The loss of captions [B, K, D] with their groups of unit patches, against all captions of the batch."""
    groups = grouped(captions, patches, sigma)
    return both(k * normalize(captions).flatten(0, 1) @ groups.flatten(0, 1).T)


def scrambled(captions: Tensor) -> Tensor:
    """Captions [B, K, D], stacked as [K, B, D] and viewed as [B, K, D]."""
    return captions.transpose(0, 1).reshape(captions.shape)


@pytest.mark.parametrize(("batch", "each"), [(8, 4), (1024, 8), (6, 4), (6, 6), (7, 1)])
def test_dreamlip_pairs_images_with_captions_of_others(batch: int, each: int) -> None:
    """Of all pairs of an image and a caption, K - 1 + gcd(K - 1, B) of B K are right, which is 1/B if the gcd is 1."""
    image = torch.arange(batch)[:, None]
    right = (scrambled(image.expand(-1, each)[..., None])[..., 0] == image).sum().item()
    assert right == each - 1 + math.gcd(each - 1, batch)


def test_dreamlip_is_ours_if_captions_stay_with_their_images() -> None:
    """With captions as tokens and unit patches, the loss is SPARC's with negatives from the batch."""
    images, texts = features(padded=False)
    images = replace(images, patches=normalize(images.patches))
    objective = with_scale(SPARC(threshold=0.1, negatives="batch"), 5.0)
    ours = objective(images, texts)["local"]
    assert_close(dreamlip(texts.tokens, images.patches, 0.1, 5.0), ours)
    assert (dreamlip(scrambled(texts.tokens), images.patches, 0.1, 5.0) - ours).abs() > 0.1


def test_dreamlip_groups_unit_patches() -> None:
    """`similarity: cosine` changes only the weights: the patches that are averaged keep their norms."""
    images, texts = features(padded=False)
    objective = with_scale(SPARC(threshold=0.1, negatives="batch", similarity="cosine"), 5.0)
    port = dreamlip(texts.tokens, normalize(images.patches), 0.1, 5.0)
    assert (port - objective(images, texts)["local"]).abs() > 1e-3
    assert_close(port, objective(replace(images, patches=normalize(images.patches)), texts)["local"])


def test_dreamlip_compares_each_caption_only_with_captions_of_its_place() -> None:
    """The port's images choose among B captions, ours among (B - 1) K + 1; texts choose among B images in both."""
    images, texts = features(each=3)
    objective = with_scale(CLIP(), 5.0)
    slots = [objective(images, texts[place::3])["global"] for place in range(3)]
    z = 5 * cosine(images.pooled, texts.pooled)
    to_texts = torch.stack([own(z[:, place::3]) for place in range(3)]).mean()
    to_images = torch.stack([own(z[:, place::3].T) for place in range(3)]).mean()
    assert_close(torch.stack(slots).mean(), (to_texts + to_images) / 2)
    our_to_texts, our_to_images = cross_entropies(lambda _, __: (z, z), images.pooled, texts.pooled)
    assert_close(objective(images, texts)["global"], (our_to_texts + our_to_images) / 2)
    assert_close(our_to_images, to_images)
    assert our_to_texts > to_texts + 0.1


# FILIP


def best_matches(images: Images, texts: Texts, mask: Tensor) -> tuple[Tensor, Tensor]:
    """FILIP's s^I and s^T [I, T], where `mask` says which tokens are compared and averaged."""
    s = torch.einsum("ipd,tld->itpl", normalize(images.patches), normalize(texts.tokens))
    to_texts = s.masked_fill(~mask[:, None], -torch.inf).amax(-1).mean(-1)
    return to_texts, (s.amax(2) * mask).sum(-1) / mask.sum(-1)


def test_x_clip_never_ranks_texts() -> None:
    """Both softmaxes of the port go over images. Its image-to-text half is log B if all images are equal."""
    images, texts = features()
    objective = with_scale(FILIP(), 5.0)
    to_texts, to_images = best_matches(images, texts, texts.mask)
    assert_close(objective(images, texts)["local"], (own(5 * to_texts) + own(5 * to_images.T)) / 2)
    assert (own(5 * to_texts) - own(5 * to_texts.T)).abs() > 1e-3
    same = images[torch.zeros(5, dtype=torch.long)]
    to_texts, to_images = best_matches(same, texts, texts.mask)
    port = (own(5 * to_texts.T) + own(5 * to_images.T)) / 2
    assert port.item() == pytest.approx(math.log(5))
    assert objective(same, texts)["local"] > math.log(5) + 0.01


def test_mindformers_is_ours_with_its_options() -> None:
    """Padding is a zero vector that is compared and not counted; two temperatures; smoothed targets."""
    images, texts = features()
    objective = FILIP(
        padding="zero", separate_temperatures=True, temperature=math.exp(-3.8665097), label_smoothing=0.1
    ).double()
    zeroed = replace(texts, tokens=texts.tokens.masked_fill(~texts.mask[..., None], 0))
    to_texts, to_images = best_matches(images, zeroed, torch.ones_like(texts.mask))
    to_images = to_images * texts.mask.shape[1] / texts.mask.sum(-1)
    k, target = objective.scale(), torch.arange(5)
    halves = [cross_entropy(k * z, target, label_smoothing=0.1) for z in (to_texts, to_images.T)]
    assert_close(objective(images, texts)["local"], torch.stack(halves).mean())
    assert k.item() == pytest.approx(47.8, abs=0.1)


def test_declip_keeps_patches_by_their_sum() -> None:
    """A patch that matches one word perfectly loses to one that matches all words a little. FILIP keeps the first."""
    words = torch.eye(3)[None]
    patches = torch.stack([words[0, 0], normalize(torch.ones(3))])[None]
    assert cosine(patches, words).sum(-1).argmax() == 1
    texts = Texts(words.mean(1), words, torch.ones(1, 3).bool())
    kept, _ = FILIP(keep_ratio=0.5).best(Images(patches.mean(1), patches, (1, 2)), texts)
    assert_close(kept.patches, patches[:, :1])


def test_declip_counts_padding_as_words() -> None:
    """The port has no mask, so its loss changes with the length of the padding. Ours does not."""
    images, texts = features()
    objective = with_scale(FILIP(), 5.0)
    unmasked = [replace(t, mask=torch.ones_like(t.mask)) for t in (texts, longer(texts))]
    short, long = (objective(images, t)["local"] for t in unmasked)
    assert (short - long).abs() > 1e-3
    assert_close(objective(images, longer(texts)), objective(images, texts))


# PACL


def own_pooling(images: Images, texts: Texts, weights: Tensor) -> Tensor:
    """The loss if each image is pooled with `weights` [B, P] of its own text and patches keep their norms."""
    pooled = (weights[..., None] * images.patches).sum(1)
    return both(10 * cosine(pooled, texts.pooled))


def own_cosines(images: Images, texts: Texts) -> Tensor:
    return torch.cosine_similarity(images.patches, texts.pooled[:, None], dim=-1)


def test_pacl_reproduction_is_ours_for_unit_patches() -> None:
    """orensul/PACL-reproduction with softmax weights: own pooling, cosine, factor 10. Norms of patches matter to it."""
    images, texts = features()
    objective = with_scale(PACL("cosine", attention_scale=10.0, pooling="own"), 10.0)
    unit = replace(images, patches=normalize(images.patches))
    weights = (10 * own_cosines(images, texts)).softmax(-1)
    assert_close(own_pooling(unit, texts, weights), objective(images, texts)["global"])
    assert (own_pooling(images, texts, weights) - objective(images, texts)["global"]).abs() > 1e-3


def test_pacl_sigmoid_weights_hardly_prefer_the_best_patch() -> None:
    """sigmoid(10 s) is almost 1 for every s above 0.5; a softmax with the same factor prefers the best patch."""
    s = torch.tensor([[[1.0], [0.5]]])
    sigmoid, softmax = (10 * s).sigmoid(), PACL(attention_scale=10.0).attend(s)
    assert (sigmoid[0, 0] / sigmoid[0, 1]).item() == pytest.approx(1.007, abs=1e-3)
    assert (softmax[0, 0] / softmax[0, 1]).item() == pytest.approx(math.exp(5), rel=1e-3)


# GLoRIA


def test_gloria_code_has_a_softmax_over_words_first() -> None:
    images, texts = features(padded=False)
    objective = GLoRIA(attention="code").double()
    over_words = (texts.tokens @ images.patches.mT).softmax(1)
    assert_close(objective.align(images, texts), (objective.temp1() * over_words).softmax(-1))


def test_gloria_code_takes_three_different_sets_of_tokens_for_words() -> None:
    """Training adds [CLS], which raises S; retrieval leaves out the first word and adds [SEP]."""
    images, texts = features(batch=4, length=5, padded=False)
    objective = GLoRIA().double()  # the tokens are [CLS], three words and [SEP]

    def match(places: list[int]) -> Tensor:
        mask = torch.zeros_like(texts.mask)
        mask[:, places] = True
        return objective.match(images, replace(texts, mask=mask))

    assert (match([0, 1, 2, 3]) > match([1, 2, 3])).all()
    assert (match([2, 3, 4]) - match([1, 2, 3])).abs().max() > 0.01


def test_gloria_zero_padding_does_not_turn_the_mean() -> None:
    """The code averages over padding too, but its padding is zero, so that the cosines are those of a masked mean."""
    images, texts = features()
    zeroed = texts.tokens.masked_fill(~texts.mask[..., None], 0)
    masked = zeroed.sum(1) / texts.mask.sum(-1, keepdim=True)
    assert_close(cosine(images.pooled, zeroed.mean(1)), cosine(images.pooled, masked))


def test_gloria_sums_of_pieces_are_sharper_words() -> None:
    """A word of two equal pieces has the attention that temp1 = 8 gives to one piece."""
    images, texts = features()
    double = replace(texts, tokens=2 * texts.tokens)
    assert_close(GLoRIA().double().align(images, double), GLoRIA(temp1=8.0).double().align(images, texts))


def test_gloria_code_scores_the_best_word_only() -> None:
    """At test time the local score is temp2 * max_w cos, which is less than S, and 0 or more if a word is zero."""
    images, texts = features(padded=False)
    objective = GLoRIA().double()
    places = torch.eye(4, dtype=torch.bool)
    words = [objective.match(images, replace(texts, mask=place.expand(5, -1))) for place in places]
    assert (objective.match(images, texts) > torch.stack(words).amax(0)).all()
    opposite = replace(images, patches=-texts.tokens[:, :1].expand(-1, 6, -1))
    first, nothing = (replace(texts, tokens=n * texts.tokens, mask=places[0].expand(5, -1)) for n in (1, 0))
    assert_close(objective.match(opposite, first).diagonal(), torch.full((5,), -5.0).double())
    assert (objective.match(opposite, nothing) == 0).all()


# MGCA


def mgca() -> MGCA:
    objective = MGCA(attention="plain", token_weights="uniform", normalize_attended=False, prototypes=4)
    objective.build(DIM)
    return objective.double()


def test_mgca_code_sums_the_two_directions() -> None:
    images, texts = features()
    objective = mgca()
    objective.global_weight = 2.0
    z = objective.scale() * cosine(images.pooled, texts.pooled)
    assert_close(own(z) + own(z.T), objective(images, texts)["global"])


def test_mgca_code_has_padded_words_among_the_negatives() -> None:
    """The port's word loss is larger than ours, and equal to it for captions without padding."""
    objective = mgca()
    for padded in (True, False):
        images, texts = features(padded=padded)
        t, v, k = normalize(texts.tokens), normalize(images.patches), objective.local_scale()
        read = (k * t @ v.mT).softmax(-1) @ v
        losses = per_token(k * t @ normalize(read).mT)
        port = ((losses * texts.mask).sum(-1) / texts.mask.sum(-1)).mean()
        attended = (k * v @ t.mT).masked_fill(~texts.mask[:, None], -torch.inf).softmax(-1) @ t
        patch = per_token(k * v @ attended.mT).mean()
        ours = objective.local_loss(images, texts)
        if padded:
            assert port + patch > ours + 0.1
        else:
            assert_close(port + patch, ours)


def test_mgca_code_balances_each_rank_alone() -> None:
    """The assignments of two halves differ from those of all samples together."""
    logits = features(batch=8)[0].pooled
    halves = torch.cat([sinkhorn(half, 3) for half in logits.split(4)])
    assert (halves - sinkhorn(logits, 3)).abs().max() > 0.05


def test_mgca_code_has_the_negatives_of_one_rank() -> None:
    """Half the negatives make the global loss smaller."""
    images, texts = features(batch=8)
    objective = mgca()
    halves = [objective(images[rows], texts[rows])["global"] for rows in (slice(0, 4), slice(4, 8))]
    assert torch.stack(halves).mean() < objective(images, texts)["global"] - 0.1


# FLAIR


def sigmoids(z: Tensor, each: int) -> Tensor:
    """-log sigmoid(+-Z) of logits Z [B, B K], where the K texts of an image are its positives."""
    image = torch.arange(len(z))
    signs = torch.where(image[:, None] == image.repeat_interleave(each), 1.0, -1.0)
    return -logsigmoid(signs * z)


def flair(temperature: float = 0.07) -> FLAIR:
    torch.manual_seed(0)
    objective = FLAIR(temperature=temperature, normalizer="texts")
    objective.build(DIM)
    return objective.double()


def test_flair_code_is_ours_for_one_caption() -> None:
    """With the code's initial temperature, both terms are sums over all pairs, divided by 2 B."""
    images, texts = features()
    objective = flair()
    k, b, terms = objective.scale(), objective.bias, objective(images, texts)
    assert_close(terms["text_conditioned"], sigmoids(k * objective.score(images, texts) + b, 1).sum() / 10)
    assert_close(terms["global"], sigmoids(k * cosine(images.pooled, texts.pooled) + b, 1).sum() / 10)
    assert k.item() == pytest.approx(1 / 0.07)


def test_flair_code_draws_one_caption_of_each_other_image() -> None:
    """Its text-conditioned loss has fewer negatives and is smaller than ours; its global loss is the same."""
    images, texts = features(each=3)
    objective = flair(temperature=1.0)
    with torch.no_grad():
        objective.bias.zero_()
    terms = objective(images, texts)
    losses = sigmoids(objective.scale() * objective.score(images, texts), 3).unflatten(1, (5, 3))
    mine = torch.eye(5).bool()
    drawn = torch.randint(3, (5, 5), generator=torch.Generator().manual_seed(0))[..., None]
    port = losses[mine].sum() + losses.gather(-1, drawn)[~mine].sum()
    assert port / (5 + 3 - 1) / 2 < terms["text_conditioned"] - 0.5
    whole = sigmoids(objective.scale() * cosine(images.pooled, texts.pooled), 3)
    assert_close(terms["global"], whole.sum() / 15 / 2)


# FG-CLIP


def regions_of(images: Images) -> tuple[Tensor, Tensor]:
    """The unit vectors of all regions and of their texts."""
    present = images.regions.sum(-1) > 0
    return normalize((images.regions @ images.patches)[present]), normalize(images.region_texts[present])


def text_loss(u: Tensor, number: int = 10) -> Tensor:
    """FG-CLIP 2's code: a text itself, and texts above 0.95, have a cosine of 0; there must be `number` texts."""
    z = (u @ u.T).fill_diagonal_(0)
    return torch.where(z > 0.95, 0.0, z).topk(number).values.logsumexp(1).mean()


def test_fgclip2_code_compares_texts_with_themselves() -> None:
    """Texts that the paper leaves out count as orthogonal. That is the same if ten others have a positive cosine."""
    torch.manual_seed(0)
    u = normalize(torch.randn(14, DIM, dtype=torch.float64) + 1)

    def ours(u: Tensor) -> Tensor:
        return FGCLIP2().text_loss(u, torch.ones(len(u), dtype=torch.bool))

    assert ((u @ u.T > 0) & (u @ u.T <= 0.95)).sum(1).min() >= 10
    assert_close(text_loss(u), ours(u))
    few = normalize(torch.randn(10, DIM, dtype=torch.float64) + 1)
    assert text_loss(few) > ours(few)
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    assert text_loss(opposite, 1) == 0
    assert ours(opposite) == -1


def test_fgclip2_code_needs_ten_texts_of_regions() -> None:
    """The code catches this exception and skips all of its losses but the first one. Here there are fewer neighbors."""
    images, texts = features(batch=5)
    assert len(regions_of(images)[1]) == 9
    with pytest.raises(RuntimeError, match="selected index k out of range"):
        text_loss(regions_of(images)[1])
    terms = FGCLIP2().double()(images, texts)
    assert all(terms[name] > 0 for name in ("region", "text", "negative", "batch_negative", "rank"))


def test_fgclip_code_takes_a_single_region_for_a_vector() -> None:
    """Without the axis of regions, [D] cannot be unpacked into their number and D. Here one region has a loss of 0."""
    images, texts = features(batch=1)
    single = replace(images, regions=images.regions[:, :1], region_texts=images.region_texts[:, :1])
    vector = regions_of(single)[0].squeeze()
    with pytest.raises(ValueError, match="not enough values to unpack"):
        _, _ = vector.shape
    for objective in (FGCLIP(), FGCLIP2()):
        terms = objective.double()(single, texts)
        assert terms["region"].item() == pytest.approx(0, abs=1e-12)
        assert terms["negative"] > 0


def test_fgclip_code_has_the_regions_of_one_rank() -> None:
    """The regions, their texts and the hard negatives of two halves of a batch have fewer candidates."""
    images, texts = features(batch=6)
    local = {"region", "text", "batch_negative"}
    for objective in (FGCLIP(), FGCLIP2()):
        whole = objective.double().eval()(images, texts)
        halves = [objective(images[rows], texts[rows]) for rows in (slice(3), slice(3, 6))]
        for name in local & {*whole}:
            assert whole[name] > (halves[0][name] + halves[1][name]) / 2
        assert_close(whole["negative"], (halves[0]["negative"] + halves[1]["negative"]) / 2)


def test_fgclip_code_leaves_out_images_without_hard_negatives() -> None:
    """The code's mean is that of the images with hard negatives. Ours is over all images, so it is smaller here."""
    images, texts = features()
    some = torch.tensor([0, 2])
    negatives = torch.zeros_like(images.negatives).index_copy(0, some, images.negatives[some])
    images = replace(images, negatives=negatives)
    for objective in (FGCLIP(), FGCLIP2()):
        objective.double().eval()
        found = objective(images, texts)
        theirs = objective(images[some], texts[some])
        assert_close(found["negative"], 2 / 5 * theirs["negative"])
        if "rank" in found:
            assert_close(found["rank"], theirs["rank"])


def test_fgclip_code_samples_points_of_a_box() -> None:
    """RoIAlign is the mean over the box if the box ends between patches, and not if it ends within them."""
    patches = torch.randn(1, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[1.0, 0.0, 4.0, 2.0], [1.2, 0.4, 3.7, 2.9]], dtype=torch.float64)
    sampled = roi_align(patches, [boxes], (1, 1), 1.0, -1, True)[..., 0, 0]
    exact = coverage(boxes, (4, 5), (4, 5)) @ patches[0].flatten(1).T
    assert_close(sampled[0], exact[0])
    assert (sampled[1] - exact[1]).abs().max() > 0.01


# COSMOS


def test_cosmos_code_reads_padding() -> None:
    """Without a mask, the vectors that a text tower leaves after the end of a text change the loss with the teacher."""
    images, texts = features()
    objective = build("COSMOS", torch.float64)
    padded = longer(texts)
    assert_close(objective(images, padded), objective(images, texts))
    port = objective(images, replace(padded, mask=torch.ones_like(padded.mask)))
    assert_close(port["global"], objective(images, texts)["global"])
    assert (port["distillation"] - objective(images, texts)["distillation"]).abs() > 1e-3


# HBI


def coalition(cells: Tensor, patches: Tensor, words: Tensor) -> Tensor:
    """The mean of both late interactions over the members, who have equal weights. Absent similarities are 0."""
    of_words = cells.amax(0)[words].sum() / words.sum().clamp_min(1)
    return (of_words + cells.amax(1)[patches].sum() / patches.sum().clamp_min(1)) / 2


def banzhaf(a: Tensor, pair_only: bool) -> Tensor:
    """Banzhaf interactions of patches and words. With `pair_only`, a joining pair brings only its own similarity."""
    found = torch.zeros_like(a)
    for i, j in product(range(a.shape[0]), range(a.shape[1])):
        brackets = []
        for members in product((False, True), repeat=sum(a.shape)):
            patches, words = torch.tensor(members).split(list(a.shape))
            if not patches[i] and not words[j]:
                here, with_i, with_j = patches[:, None] & words, patches.clone(), words.clone()
                with_i[i], with_j[j] = True, True
                joined = here if pair_only else with_i[:, None] & with_j
                joined = joined | (with_i & ~patches)[:, None] & (with_j & ~words)
                pair, nobody = coalition(a * joined, with_i, with_j), coalition(a * here, patches, words)
                patch = coalition(a * (with_i[:, None] & words), with_i, words)
                word = coalition(a * (patches[:, None] & with_j), patches, with_j)
                brackets.append(pair - patch - word + nobody)
        found[i, j] = torch.stack(brackets).mean()
    return found


def test_hbi_gives_a_joining_pair_only_its_own_similarity() -> None:
    """In the coalition with both players, their similarities with all others are missing, so the value is smaller."""
    a = torch.rand(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    game = Game("banzhaf", normalizer="present")
    exact = pair_interactions(a, game=game)
    assert_close(banzhaf(a, pair_only=False), exact)
    assert_close(brute_force_pair_interactions(a, game=game), exact)
    port = banzhaf(a, pair_only=True)
    assert (port <= exact + 1e-12).all()
    assert port.sum() < 0 < exact.sum()


def test_hbi_weights_of_weights_are_nearly_equal() -> None:
    """After a second softmax, no weight is more than e times another, however sure the first one is."""
    weights = torch.tensor([50.0, 0.0, -50.0]).softmax(0).softmax(0)
    assert weights.max() / weights.min() <= math.e + 1e-5


def kl(student: Tensor, teacher: Tensor) -> Tensor:
    """HBI's divergence: a softmax over the last axis, and a mean over all elements."""
    return kl_div(student.log_softmax(-1), teacher.softmax(-1), reduction="none").mean()


def test_hbi_compares_over_the_batch_instead_of_over_words() -> None:
    """Reversing all axes of [B, L, P] puts the batch last: with one pair the term is 0, whatever the network says."""
    student, teacher = torch.randn(2, 1, 4, 6, generator=torch.Generator().manual_seed(0))
    assert kl(student.permute(2, 1, 0), teacher.permute(2, 1, 0)) == 0
    assert kl(student.mT, teacher.mT) > 0.01


def test_hbi_divides_by_all_elements() -> None:
    """A mean over elements is 1 / (L P) of the divergence that is summed over them for each pair."""
    student, teacher = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    per_pair = kl_div(student.log_softmax(-1), teacher.softmax(-1), reduction="batchmean")
    assert_close(kl(student, teacher), per_pair / 24)


def test_hbi_compares_with_padding_of_similarity_zero() -> None:
    """An image's maximum is never negative if the text is padded, as with FILIP's `padding: zero`."""
    images, texts = features()
    zero, excluded = FILIP(padding="zero"), build("FILIP")
    s = torch.einsum("ipd,tld->itpl", normalize(images.patches), normalize(texts.tokens)) * texts.mask[:, None]
    assert_close(zero.score(images, texts), s.amax(-1).mean(-1))
    assert (zero.score(images, texts) >= excluded.score(images, texts)).all()
