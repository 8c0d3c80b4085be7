"""The learning rate warms up and then falls."""

import math

import pytest

from patchword.errors import UserError
from patchword.training.lr_schedule import Schedule


def test_warms_up_then_falls_to_the_final_fraction() -> None:
    """The rate rises linearly and then falls to its final fraction."""
    factor = Schedule(warmup_steps=9, final=0.1).factor(lambda: 109)
    assert factor(0) == pytest.approx(0.1)
    assert factor(8) == pytest.approx(0.9)
    assert factor(9) == pytest.approx(1.0)
    assert factor(59) == pytest.approx(0.55)
    assert factor(109) == pytest.approx(0.1)
    assert factor(500) == pytest.approx(0.1)


@pytest.mark.parametrize("warmup", [0, 3])
def test_the_end_of_training_is_not_asked_for_before_step_one(warmup: int) -> None:
    """Lightning would load the training data to answer, and then could not resume within an epoch."""

    def too_early() -> float:
        raise AssertionError("asked too early")

    assert Schedule(warmup_steps=warmup).factor(too_early)(0) <= 1


def test_without_an_end_the_rate_stays_at_its_peak() -> None:
    """If the number of steps is unknown, the rate does not fall."""
    assert Schedule(warmup_steps=2).factor(lambda: math.inf)(1000) == 1.0


def test_nonsense_is_refused() -> None:
    """Invalid options raise an error."""
    with pytest.raises(UserError, match="warmup_steps"):
        Schedule(warmup_steps=-1)
    with pytest.raises(UserError, match="final"):
        Schedule(final=2.0)
