"""Tests average precision and AUROC against scikit-learn."""

import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from patchword.metrics.ranking import at_once, pixel_ranking


@pytest.mark.parametrize("levels", [2, 5, 10_000])
def test_equals_scikit_learn_whatever_ties(levels):
    """Equal scores must not be ordered at random: with 2 levels nearly all scores tie, with 10,000 hardly any."""
    generator = torch.Generator().manual_seed(levels)
    scores = torch.randint(levels, (30, 50), generator=generator) / levels - 0.5
    positive = torch.rand(30, 50, generator=generator) < torch.linspace(0.1, 0.9, 30)[:, None]
    positive[:, 0], positive[:, 1] = True, False
    ap, auroc = pixel_ranking(scores, positive)
    for n in range(30):
        assert ap[n].item() == pytest.approx(average_precision_score(positive[n], scores[n]), abs=1e-6)
        assert auroc[n].item() == pytest.approx(roc_auc_score(positive[n], scores[n]), abs=1e-6)


def test_rows_of_one_class():
    """Rows with only positives or only negatives do not divide by zero."""
    ap, auroc = pixel_ranking(torch.rand(2, 6), torch.tensor([[True], [False]]).expand(2, 6))
    assert ap.tolist() == [1, 0]
    assert auroc.tolist() == [0.5, 0.5]


def test_signs_and_rows():
    """-0.0 ties with 0.0, and negative numbers and infinities are in order, independently of the previous row."""
    scores = torch.tensor([[-0.0, 0.0, -1e-30, -torch.inf], [torch.inf, -2.0, -1.0, 5.0]])
    positive = torch.tensor([[True, False, True, False], [False, True, True, False]])
    ap, auroc = pixel_ranking(scores, positive)
    assert ap.tolist() == pytest.approx([(1 / 2 + 2 / 3) / 2, (1 / 3 + 2 / 4) / 2])
    assert auroc.tolist() == pytest.approx([(1.5 + 1) / 4, 0])


def test_rows_that_rank_several_sets():
    """A row that is sorted once for several sets of positives gives the same results as one that is sorted for each."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(20, (3, 60), generator=generator) / 7 - 1
    positive = torch.rand(12, 60, generator=generator) < 0.3
    positive[5] = False
    positive[6] = True
    row, every = torch.tensor([0, 2, 2, 0, 1, 2, 2, 0, 0, 2, 0, 0]), torch.arange(12)
    for found, expected in zip(
        pixel_ranking(scores, positive, (row, every)), pixel_ranking(scores[row], positive), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_an_accelerator_gives_the_same():
    """The operations for accelerators, run on the CPU, equal those for the CPU for numbers of any size."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(8, 50, generator=generator).round(decimals=1) * 10.0 ** torch.arange(-20, 20, 5)[:, None]
    positive = torch.rand(8, 50, generator=generator) < 0.4
    for found, expected in zip(at_once(scores, positive), pixel_ranking(scores, positive), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
