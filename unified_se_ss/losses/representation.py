"""Distance between the enhanced and the clean representation: the SE task's loss."""

from __future__ import annotations

import torch

from unified_se_ss.padding import real_elements

EPSILON = 1e-8


def _squared_distance(enhanced: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    return (enhanced - clean).square().sum((1, 2))


def _relative_distance(enhanced: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    return _squared_distance(enhanced, clean) / (clean.square().sum((1, 2)) + EPSILON)


REPRESENTATION_LOSSES = {"sum": _squared_distance, "relative": _relative_distance}


def representation_loss(
    enhanced: torch.Tensor,
    clean: torch.Tensor,
    frames: torch.Tensor | None = None,
    kind: str = "sum",
) -> torch.Tensor:
    """Distance of each item's enhanced representation from its clean one.

    The gradient flows into both arguments, as in the published system, where the clean
    mixture's representation is not detached. Computed in at least float32, so that the
    loss, and with it the weight of the task, means the same in every precision.

    Arguments
    ---------
    enhanced : torch.Tensor
        Enhanced representation, [B, N, L].
    clean : torch.Tensor
        Representation of the clean mixture, [B, N, L].
    frames : torch.Tensor, optional
        Real frames of each item, [B].
    kind : str
        ``"sum"`` (published): squared distance summed over everything; grows with the
        length and with the square of the level. ``"relative"``: the same over the
        energy of the clean representation; has no scale, 1 for an enhanced
        representation of zero. A silent clean mixture gives a large finite value.

    Returns
    -------
    torch.Tensor
        One loss per item, [B].

    Source of ``"sum"``: YUCHEN005/Unified-Enhance-Separation, train_unified_gm.py.

    Example
    -------
    >>> clean = torch.ones(2, 3, 5)
    >>> representation_loss(0 * clean, clean, torch.tensor([5, 4]))
    tensor([15., 12.])
    >>> representation_loss(0 * clean, clean, kind="relative")
    tensor([1., 1.])
    """
    if kind not in REPRESENTATION_LOSSES:
        known = ", ".join(REPRESENTATION_LOSSES)
        raise ValueError(f"se_loss is '{kind}'; expected one of: {known}")
    if enhanced.dtype in (torch.float16, torch.bfloat16):
        enhanced, clean = enhanced.float(), clean.float()
    if frames is not None:
        mask = real_elements(frames, enhanced.shape[-1], enhanced.device).unsqueeze(1)
        enhanced = torch.where(mask, enhanced, 0.0)
        clean = torch.where(mask, clean, 0.0)
    return REPRESENTATION_LOSSES[kind](enhanced, clean)
