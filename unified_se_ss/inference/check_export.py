"""Whether another program computes what the model does, before its file is handed out."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from unified_se_ss.errors import UserError

TOLERANCES = {"speechbrain": 1e-5, "onnx": 1e-4}  # of the largest sample
QUIET = 0.01  # where the largest sample is smaller, of this


def mixtures_to_compare(model, batch: int) -> Iterator[torch.Tensor]:
    """Noise of several lengths, [B, T]: the shortest, an odd one, one second and a bit."""
    generator = torch.Generator().manual_seed(0)
    least, second = model.minimum_samples, model.sample_rate
    shape = (batch,) if model.channels == 1 else (batch, model.channels)
    for samples in (least, 3 * least + 1, second + 7):
        yield torch.randn(*shape, samples, generator=generator)


def same_signals(name: str, program: str, expected, found) -> None:
    """Stop unless two signals agree within the format's tolerance.

    Arguments
    ---------
    name : str
        The format, a key of :data:`TOLERANCES`.
    program : str
        Who computed `found`.
    expected : torch.Tensor
        What the model gives.
    found : torch.Tensor
        What the other program gives.

    Raises
    ------
    UserError
        They differ.

    Example
    -------
    >>> same_signals("onnx", "onnxruntime", torch.ones(3), torch.ones(3) + 2e-6)
    """
    allowed = TOLERANCES[name] * max(QUIET, expected.abs().max().item())
    if found.shape == expected.shape:
        difference = (found - expected).abs().max().item()
        if difference <= allowed:  # not so for NaN
            return
        problem = f"by {difference:.2g}, allowed are {allowed:.2g}"
    else:
        problem = f"in shape: {tuple(found.shape)} instead of {tuple(expected.shape)}"
    raise UserError(
        f"--format {name}: what {program} computes differs from the model ({problem}); "
        "nothing was written"
    )
