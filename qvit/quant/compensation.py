"""Rounding with compensation: what one column's rounding spoils, the columns after it make good."""

import torch
from torch import Tensor

from qvit.quant.slices import Limits

# Columns whose corrections are applied to the rest at once: one matrix product instead of as many outer products.
_BLOCK = 64


def compensate(
    weight: Tensor, steps: Tensor, moments: Tensor, limits: Limits, damping: float = 0.01
) -> Tensor:
    """Weights on their grid, chosen for the least squared error of the output (GPTQ, Frantar et al. 2023, algorithm 1).

    With H the second moments of the inputs, the columns are rounded one after the other, those with the largest inputs
    first, and the error e of a column is spread over those that are still to come:

        U = chol(H^-1), upper;   w_j <- w_j - e / U_ii * U_ij   for all j after i

    Args:
        weight: fp32 [N, K].
        steps: Step of every weight, [N, K] or whatever broadcasts to it; none zero.
        moments: X^T X of the inputs X [rows, K], [K, K], by any factor. Columns that are always zero are allowed.
        limits: The smallest and the largest code, numbers or what broadcasts to [N, K].
        damping: Share of the mean of the moments' diagonal that is added to it.

    Returns:
        fp32 [N, K], whole multiples of `steps`.
    """
    order = moments.diagonal().argsort(descending=True, stable=True)
    steps = steps.expand_as(weight)[:, order].double()
    remaining = weight[:, order].double()
    upper = _inverse_factor(moments.double()[order][:, order], damping)
    low, high = (torch.as_tensor(x).expand_as(weight)[:, order].double() for x in limits)
    rounded = torch.empty_like(remaining)
    columns = len(order)
    for start in range(0, columns, _BLOCK):
        stop = min(start + _BLOCK, columns)
        errors = torch.empty_like(remaining[:, start:stop])
        for i in range(start, stop):
            codes = torch.round(remaining[:, i] / steps[:, i]).clamp(low[:, i], high[:, i])
            rounded[:, i] = codes * steps[:, i]
            error = (remaining[:, i] - rounded[:, i]) / upper[i, i]
            remaining[:, i:stop] -= error.unsqueeze(1) * upper[i, i:stop]
            errors[:, i - start] = error
        remaining[:, stop:] -= errors @ upper[start:stop, stop:]
    return rounded[:, order.argsort()].to(weight.dtype)


def _inverse_factor(moments: Tensor, damping: float) -> Tensor:
    """The upper Cholesky factor of the inverse of the damped moments."""
    diagonal = moments.diagonal()
    mean = diagonal.mean()
    damped = moments + torch.diag(torch.where(diagonal > 0, damping * mean, 1.0))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True)
