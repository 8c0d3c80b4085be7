"""Synchronizes batch norms over ranks: they normalize with the statistics of the complete batch.

patchword does not use `torch.nn.SyncBatchNorm` because it does not run on CPUs, and because Lightning's conversion to
it drops the activation that timm's batch norms contain. `SharedBatchNorm` is not a `_BatchNorm`, so that conversion
(`sync_batchnorm: true`) does not change it.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import batch_norm
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from patchword.distributed import gather, world_size


def synchronize_batch_norms(module: nn.Module) -> None:
    """Replace the batch norms in `module` that are in training mode by ones that see the batches of all ranks.

    Parameters, buffers and their names do not change. On one process, no norm is replaced. Norms of frozen towers,
    which are in eval mode, and other subclasses than torch's and timm's batch norms are never replaced.
    """
    if world_size() == 1:
        return
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm) and child.training and type(child) in _known():
                setattr(parent, name, SharedBatchNorm(child))


class SharedBatchNorm(_NormBase):
    """A batch norm over the batches of all ranks, with exact gradients; in eval mode, an ordinary batch norm.

    The batches of all ranks must have the same size. Statistics are computed in float32 or a wider type. The parameters
    and buffers are those of `norm`, which it replaces.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            setattr(self, name, getattr(norm, name))
        self.drop = getattr(norm, "drop", nn.Identity())  # only timm's norms have it
        self.act = getattr(norm, "act", nn.Identity())
        self.train(norm.training)

    def forward(self, x: Float[Tensor, "B C *n"]) -> Float[Tensor, "B C *n"]:
        """Normalize x per channel, scale and shift it, and apply the activation if the original norm has one."""
        if not self.training and self.running_mean is not None:
            x = batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        else:
            x = self._normalize(x)
        return self.act(self.drop(x))

    def _normalize(self, x: Float[Tensor, "B C *n"]) -> Float[Tensor, "B C *n"]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        own = torch.stack(torch.var_mean(wide, [0, *range(2, x.ndim)], correction=0))
        variances, means = gather(own[None]).unbind(1)  # [ranks, C] each
        mean = means.mean(0)
        variance = (variances + (means - mean).square()).mean(0)
        if self.training:
            self._track(mean, variance, count=x.numel() // x.shape[1] * len(means))
        scale = (variance + self.eps).rsqrt() * (1 if self.weight is None else self.weight)
        shift = (0 if self.bias is None else self.bias) - mean * scale
        shape = (1, -1) + (1,) * (x.ndim - 2)
        return torch.addcmul(shift.view(shape), wide, scale.view(shape)).to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Float[Tensor, " C"], variance: Float[Tensor, " C"], count: int) -> None:
        """Update the running statistics as torch does; torch's running variance is unbiased."""
        if self.num_batches_tracked is None or self.running_mean is None or self.running_var is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_((variance * count / max(count - 1, 1)).to(self.running_var.dtype), share)


def _known() -> set[type]:
    from timm.layers.norm_act import BatchNormAct2d

    return {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNormAct2d}
