"""The network that predicts interactions ignores padding, learns, and is used only when it is certain."""

import torch
from torch.testing import assert_close

from patchword.shapley import InteractionNetwork, certain_or_sampled, pair_interactions


def never(_: torch.Tensor) -> torch.Tensor:
    raise AssertionError("sampled although every prediction is certain")


def test_certain_predictions_are_used_and_nothing_is_sampled() -> None:
    """No interaction is sampled if the network is certain."""
    prediction, log_variance = torch.randn(3, 4, requires_grad=True), torch.full((3, 4), -9.0)
    used, loss = certain_or_sampled(
        (prediction, log_variance), never, torch.ones(3, 4).bool(), torch.full((3, 4), 2.0), 0.05
    )
    assert_close(used, 2 * prediction.detach())
    assert not used.requires_grad
    loss.backward()  # part of the graph all the same: no parameter goes unused under DDP
    assert (prediction.grad == 0).all()


def test_uncertain_predictions_are_replaced_by_samples_and_learn_from_them() -> None:
    """If the network is not certain, it learns from samples."""
    prediction = torch.tensor([1.0, 1.0, 1.0], requires_grad=True)
    log_variance, mask = torch.tensor([-9.0, 0.0, 0.0]), torch.tensor([True, True, False])
    samples, unit = torch.tensor([50.0, 30.0, 70.0]), torch.tensor(10.0).expand(3)
    used, loss = certain_or_sampled((prediction, log_variance), lambda _: samples, mask, unit, 0.05)
    assert used[:2].tolist() == [10.0, 30.0]
    loss.backward()
    # 1/2 [exp(-s) (1 - 3)^2 + s] at s = 0, over two entries that count
    assert loss.item() == 1.0
    assert prediction.grad.tolist() == [0.0, -1.0, 0.0]


def test_cells_outside_the_mask_reach_no_other() -> None:
    """Padding does not change the predictions of other cells."""
    torch.manual_seed(0)
    network, maps = InteractionNetwork(1), torch.randn(2, 1, 3, 4)
    mask = torch.ones(2, 3, 4).bool()
    mask[:, :, 3] = False
    garbage = maps.masked_fill(~mask[:, None], float("nan"))
    for found, expected in zip(network(garbage, mask), network(maps[..., :3], mask[..., :3]), strict=True):
        assert_close(found[..., :3], expected)
    nothing = network(maps, torch.zeros_like(mask))
    assert all(x.isfinite().all() for x in nothing)


def test_learns_exact_interactions_and_how_far_it_is_off() -> None:
    """After 200 steps its error is below that of the best constant, and its certainty is calibrated."""
    torch.manual_seed(0)
    network, mask, unit = InteractionNetwork(1), torch.ones(64, 5, 4).bool(), torch.full((64, 5, 4), 1 / 20)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(200):
        similarity = torch.rand(64, 5, 4)
        exact = pair_interactions(similarity)
        _, loss = certain_or_sampled(network(similarity[:, None], mask), lambda _, e=exact: e, mask, unit, 0.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    similarity = torch.rand(64, 5, 4)
    exact = pair_interactions(similarity)
    prediction, log_variance = network(similarity[:, None], mask)
    error = (unit * prediction - exact).square().mean().sqrt()
    assert error < 0.6 * exact.std()
    assert 0.4 < (unit * (log_variance / 2).exp()).mean() / error < 2
