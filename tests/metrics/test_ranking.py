"""Average precision and AUROC against scikit-learn."""

import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from patchword.metrics.ranking import pixel_ranking


@pytest.mark.parametrize("levels", [2, 5, 10_000])
def test_equals_scikit_learn_whatever_ties(levels):
    """A group of equal scores must not be ordered by chance: 2 levels tie almost everywhere, 10,000 hardly."""
    generator = torch.Generator().manual_seed(levels)
    scores = torch.randint(levels, (30, 50), generator=generator) / levels
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
