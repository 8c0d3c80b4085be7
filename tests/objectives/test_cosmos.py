"""Tests of COSMOS against loops that implement its equations in Python floats, and against torch's attention.

They also check which views, texts and tokens enter which term, and that no gradient reaches the teacher.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from patchword import Images, Texts
from patchword.errors import UserError
from patchword.features import map_tensors
from patchword.objectives import CLIP, COSMOS
from tests.objectives.test_beta_clip import regular, sines
from tests.objectives.test_flair import dot
from tests.objectives.test_smart_clip import norm
from tests.objectives.test_sparc import cos
from tests.objectives.variants import DIM, build, gradients, pairs

Vector = list[float]
K = 3


def shaken(**options: float) -> COSMOS:
    """COSMOS with parameters that are sines of squares, so that each of them affects the result."""
    objective = COSMOS(**{"heads": 2} | options)  # type: ignore[arg-type]
    objective.build(DIM)
    objective.double()
    start = 0
    with torch.no_grad():
        for name, parameter in sorted(objective.named_parameters()):
            if not name.endswith("scale.log"):
                places = torch.arange(start, start + parameter.numel(), dtype=torch.float64)
                parameter.copy_(places.square().mul(1.7).sin().reshape(parameter.shape))
                start += parameter.numel()
        objective.scale.log.fill_(math.log(5.0))
        objective.distillation_scale.log.fill_(math.log(3.0))
    return objective


def several(batch: int = 4) -> tuple[Images, Texts]:
    """Images with K texts each."""
    return pairs(batch, dtype=torch.float64)[0], pairs(K * batch, dtype=torch.float64, seed=1)[1]


def read(layers: torch.nn.Module, question: Vector, context: list[Vector], heads: int) -> tuple[Vector, Vector]:
    """A(q, C) of one query, and the weights averaged over heads: equation (a)."""
    weight, bias = layers.attention.in_proj_weight.tolist(), layers.attention.in_proj_bias.tolist()

    def project(x: Vector, part: int) -> Vector:
        rows = slice(part * DIM, (part + 1) * DIM)
        return [dot(row, x) + b for row, b in zip(weight[rows], bias[rows], strict=True)]

    query = project(norm(layers.query_norm, question), 0)
    keys, values = ([project(norm(layers.context_norm, c), part) for c in context] for part in (1, 2))
    width, found, mean = DIM // heads, [], [0.0] * len(context)
    for start in range(0, DIM, width):
        own = slice(start, start + width)
        e = [math.exp(dot(query[own], key[own]) / math.sqrt(width)) for key in keys]
        a = [x / sum(e) for x in e]
        found += [sum(w * v[d] for w, v in zip(a, values, strict=True)) for d in range(start, start + width)]
        mean = [m + w / heads for m, w in zip(mean, a, strict=True)]
    out = layers.attention.out_proj
    return [dot(row, found) + b for row, b in zip(out.weight.tolist(), out.bias.tolist(), strict=True)], mean


def clip(x: list[Vector], y: list[Vector], k: float) -> float:
    """CLIP's loss of the pairs (x[i], y[i])."""
    z, total = [[k * cos(a, b) for b in y] for a in x], 0.0
    for i in range(len(x)):
        total += math.log(sum(map(math.exp, z[i]))) - z[i][i]
        total += math.log(sum(math.exp(row[i]) for row in z)) - z[i][i]
    return total / (2 * len(x))


def mean_clip(x: list[list[Vector]], y: list[list[Vector]], k: float) -> float:
    """The mean of `clip` over all pairs of views; x and y hold a list of views for each image: equation (d)."""
    by_view = ([list(view) for view in zip(*side, strict=True)] for side in (x, y))
    losses = [clip(a, b, k) for one, other in [tuple(by_view)] for a in one for b in other]
    return sum(losses) / len(losses)


def loop(objective: COSMOS, images: Images, texts: Texts) -> dict[str, float]:
    """Both terms, one image at a time: equations (b) to (g)."""
    each, x, t, u, w = len(texts) // len(images), [], [], [], []
    for i in range(len(images)):
        first = i * each
        x.append([images.pooled[i].tolist(), *images.views[i].tolist()])
        t.append(texts.pooled[first : first + each].tolist())
        tokens, patches = texts.tokens[first][texts.mask[first]].tolist(), images.patches[i].tolist()
        for questions, layers, context, found in (
            (x[i], objective.of_tokens, tokens, u),
            (t[i], objective.of_patches, patches, w),
        ):
            answers = [read(layers, q, context, objective.heads)[0] for q in questions]
            found.append([[a + b for a, b in zip(*both, strict=True)] for both in zip(questions, answers, strict=True)])
    image = images.teacher.tolist()
    text = [texts.teacher[i * each : (i + 1) * each][: objective.global_texts].tolist() for i in range(len(images))]
    k, kd = objective.scale().item(), objective.distillation_scale().item()
    large = [views[: len(image[0])] for views in x]
    distilled = sum(mean_clip(a, b, kd) for a in (u, w) for b in (image, text)) / 4
    return {
        "global": objective.global_weight * mean_clip(large, t, k),
        "distillation": objective.distillation_weight * distilled,
    }


@pytest.mark.parametrize("heads", [1, 2, 8])
@pytest.mark.parametrize("global_texts", [1, 2])
def test_equals_loop(heads: int, global_texts: int) -> None:
    """Both terms equal the loop, with one text and with three texts for each image."""
    objective = shaken(heads=heads, global_texts=global_texts, distillation_weight=0.7)
    for images, texts in (pairs(dtype=torch.float64), several()):
        found = {name: term.item() for name, term in objective(images, texts).items()}
        assert found == pytest.approx(loop(objective, images, texts), abs=1e-10)


# The loop's terms for `regular` features and the parameters of `shaken`, with one and with K texts.
GOLDEN = {1: (1.2432383054508795, 0.637893592136034), K: (1.100044863407315, 0.8561864449897252)}


def regular_views(each: int) -> tuple[Images, Texts]:
    """Two images with two crops, of which one is large, and a teacher's embeddings, all of them sines of squares."""
    images, texts = regular(each)
    more = sines(8 + 2 * each, DIM, start=900)
    views, teacher = more[:8].view(2, 2, 2, DIM)
    return replace(images, views=views, teacher=teacher), replace(texts, teacher=more[8:])


@pytest.mark.parametrize("each", GOLDEN)
def test_equals_golden(each: int) -> None:
    """Both terms of embeddings and parameters that do not depend on a random generator."""
    terms = shaken()(*regular_views(each))
    assert (terms["global"].item(), terms["distillation"].item()) == pytest.approx(GOLDEN[each], abs=1e-10)


def test_the_map_is_the_attention_of_tokens_over_patches() -> None:
    """Each row is the mean over heads of what the loop reads with a token as the query, and sums to 1."""
    objective, (images, texts) = shaken(), pairs(dtype=torch.float64)
    rows = objective.align(images, texts)
    assert_close(rows.sum(-1), texts.mask.double())
    for b, words in enumerate(texts.tokens.tolist()):
        for n in range(int(texts.mask[b].sum())):
            expected = read(objective.of_patches, words[n], images.patches[b].tolist(), 2)[1]
            assert rows[b, n].tolist() == pytest.approx(expected, abs=1e-10)


def test_without_distillation_it_is_the_mean_of_clips() -> None:
    """Small crops are left out, and the k-th texts of the images are contrasted with each other."""
    images, texts = several()
    objective, one = shaken(), CLIP().double()
    with torch.no_grad():
        one.scale.log.copy_(objective.scale.log)
    losses = []
    for view in (images.pooled, images.views[:, 0]):
        for k in range(K):
            losses.append(one(replace(images, pooled=view), texts[k::K])["global"])
    assert_close(objective(images, texts)["global"], torch.stack(losses).mean())


def changed(side: Tensor, rows: slice) -> Tensor:
    """A copy of `side` with other values in some rows."""
    new = side.detach().clone()
    new[rows] = new[rows].flip(-1)
    return new


def test_only_the_large_views_meet_the_texts_and_all_views_meet_the_teacher() -> None:
    images, texts = several()
    objective = shaken()
    small = replace(images, views=torch.cat([images.views[:, :1], images.views[:, 1:].flip(-1)], 1))
    before, after = objective(images, texts), objective(small, texts)
    assert before["global"] == after["global"]
    assert (before["distillation"] - after["distillation"]).abs() > 1e-3


def test_only_the_first_texts_are_taught() -> None:
    """The teacher's embeddings of an image's third text change nothing, and those of its first two do."""
    images, texts = several()
    objective = shaken()
    expected = objective(images, texts)["distillation"].item()
    for k, same in ((0, False), (1, False), (2, True)):
        other = replace(texts, teacher=changed(texts.teacher, slice(k, None, K)))
        assert (objective(images, other)["distillation"].item() == expected) is same


def test_images_read_the_tokens_of_their_first_text_only() -> None:
    """The tokens of other texts, and tokens that are not selected, get no gradient and may be NaN."""
    images, texts = several()
    found = gradients(shaken(), images, texts)["texts.tokens"]
    is_read = torch.zeros_like(texts.mask)
    is_read[::K] = texts.mask[::K]
    assert torch.equal((found != 0).any(-1), is_read)


def test_padding_of_patches_changes_nothing() -> None:
    """Texts do not read patches that are padding, and their part of the map is zero."""
    images, texts = pairs(grid=(2, 3), dtype=torch.float64)
    padding = torch.tensor([False, False, True, False, False, True])
    smaller = replace(images, patches=images.patches[:, ~padding], grid=(2, 2), regions=None)
    filled = images.patches.detach().masked_fill(padding[:, None], float("nan"))
    padded = replace(images, patches=filled, mask=(~padding).expand(5, -1))
    assert_close(shaken()(padded, texts), shaken()(smaller, texts))
    rows = shaken().align(padded, texts)
    assert_close(rows[..., ~padding], shaken().align(smaller, texts))
    assert (rows[..., padding] == 0).all()


def test_no_gradient_reaches_the_teacher() -> None:
    """Its embeddings come without gradient, and the objective adds none: they are constants of the loss."""
    images, texts = several()
    loss = sum(shaken()(images, texts).values())
    assert not images.teacher.requires_grad
    assert not texts.teacher.requires_grad
    assert loss.requires_grad


def test_the_loss_with_the_teacher_contains_the_answer() -> None:
    """A known property: with equal images, texts can still be found, because u reads the tokens of its own text.

    Without this, only C(w, T) could be lower than log B. A low `distillation` is therefore no sign of alignment.
    """
    objective = build("COSMOS", torch.float64)
    images, texts = (map_tensors(side, lambda x: x.detach()) for side in pairs(dtype=torch.float64))
    images, texts = images[torch.zeros(5, dtype=torch.long)], replace(texts, teacher=texts.pooled)
    optimizer = torch.optim.Adam(objective.parameters(), lr=0.01)
    for _ in range(100):
        terms = objective(images, texts)
        optimizer.zero_grad()
        terms["distillation"].backward()
        optimizer.step()
    assert terms["distillation"] < 0.7 * math.log(5)


def test_default_weights_are_the_codes() -> None:
    """Both terms have the weight 1, and two texts of an image are taught."""
    objective = COSMOS()
    assert (objective.global_weight, objective.distillation_weight, objective.global_texts) == (1, 1, 2)
    assert objective.scale() == objective.distillation_scale()
    assert objective.scale() is not objective.distillation_scale()


@pytest.mark.parametrize(("options", "message"), [({"global_texts": 0}, "global_texts"), ({"heads": 0}, "heads")])
def test_wrong_numbers_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=f"COSMOS's {message} must be 1 or more, not 0"):
        COSMOS(**options)
    with pytest.raises(UserError, match="heads must divide embed_dim"):
        COSMOS(heads=3).build(DIM)
