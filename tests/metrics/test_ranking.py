"""Average precision and AUROC against scikit-learn."""

import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from patchword.metrics.ranking import pixel_ranking


@pytest.mark.parametrize("levels", [2, 5, 10_000])
def test_equals_scikit_learn_whatever_ties(levels):
    """A group of equal scores must not be ordered by chance: 2 levels tie almost everywhere, 10,000 hardly."""
    generator = torch.Generator().manual_seed(levels)
    scores = torch.randint(levels, (30, 50), generator=generator) / levels - 0.5
    positive = torch.rand(30, 50, generator=generator) < torch.linspace(0.1, 0.9, 30)[:, None]
    positive[:, 0], positive[:, 1] = True, False
    ap, auroc = pixel_ranking(scores, positive)
    for n in range(30):
        assert ap[n].item() == pytest.approx(average_precision_score(positive[n], scores[n]), abs=1e-6)
        assert auroc[n].item() == pytest.approx(roc_auc_score(positive[n], scores[n]), abs=1e-6)


def test_rows_of_one_class():
    """Neither a row of positives nor one of negatives divides by zero."""
    ap, auroc = pixel_ranking(torch.rand(2, 6), torch.tensor([[True], [False]]).expand(2, 6))
    assert ap.tolist() == [1, 0]
    assert auroc.tolist() == [0.5, 0.5]


def test_signs_and_rows():
    """Minus zero ties with zero, and numbers below zero and infinities are in their order, whatever the row before."""
    scores = torch.tensor([[-0.0, 0.0, -1e-30, -torch.inf], [torch.inf, -2.0, -1.0, 5.0]])
    positive = torch.tensor([[True, False, True, False], [False, True, True, False]])
    ap, auroc = pixel_ranking(scores, positive)
    assert ap.tolist() == pytest.approx([(1 / 2 + 2 / 3) / 2, (1 / 3 + 2 / 4) / 2])
    assert auroc.tolist() == pytest.approx([(1.5 + 1) / 4, 0])
