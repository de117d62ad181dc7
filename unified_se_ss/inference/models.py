"""A trained model: loaded from an exported folder or a run's folder, and what it can do.

Axes: B batch, T samples, J sources.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext

import torch
from torch import nn

from unified_se_ss.errors import UserError
from unified_se_ss.inference.configuration import FAULTS, build_network, outline
from unified_se_ss.inference.families import KINDS
from unified_se_ss.inference.folders import read_folder
from unified_se_ss.inference.weights import check_state

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


# ------------------------------------------------------------------ a model


class Model:
    """A network that is ready to use, whichever recipe trained it.

    Arguments
    ---------
    network : torch.nn.Module
        Is put into evaluation mode and on `device`.
    kind : str
        A name in :data:`~unified_se_ss.inference.families.KINDS`.
    sample_rate : int
        Hz.
    device : str or torch.device, optional
        By default a GPU if there is one.
    precision : str, optional
        ``"fp32"`` (default), ``"bf16"`` or ``"fp16"``: what products are computed in.
        Signals are fp32 in any case.
    configuration : dict, optional
        The same as plain data, as ``config.json`` holds it.
    decoding : unified_se_ss.inference.folders.Decoding, optional
        Of a recogniser: its tokenizer and its search.

    Attributes
    ----------
    n_sources : int
        Sources J; 0 for a model that only enhances.
    channels : int
        Channels of the input; 1 is mono.
    ears : int
        Channels of each source; 2 for a binaural model, else 1.
    causal : bool
        Whether the output at a time depends on no later input (beyond the window).
    minimum_samples : int
        The shortest input that the network can take.
    can_enhance : bool
        Whether :meth:`enhance` gives anything.

    Example
    -------
    >>> from functools import partial
    >>> from unified_se_ss.networks import (
    ...     Decoder, DualPath, Encoder, Recurrent, UnifiedNetwork)
    >>> model = partial(Recurrent, n_features=8, hidden=4)
    >>> masks = partial(DualPath, model, model, n_basis=32, n_features=8,
    ...     blocks=1, chunk_length=10, linear_after=True)
    >>> network = UnifiedNetwork(
    ...     encoder=Encoder(32, 16, 8), enhancer=masks(n_sources=1),
    ...     separator=masks(n_sources=2), decoder=Decoder(32, 16, 8))
    >>> model = Model(network, "unified", sample_rate=8000, device="cpu")
    >>> print(model)
    unified model, 2 sources, 8000 Hz, 4,826 parameters, on cpu in fp32
    >>> model.separate(torch.randn(3, 400)).shape, model.enhance(torch.randn(3, 400)).shape
    (torch.Size([3, 2, 400]), torch.Size([3, 400]))
    """

    n_sources: int
    channels: int
    ears: int = 1
    causal: bool
    minimum_samples: int
    can_enhance: bool

    def __init__(
        self,
        network: nn.Module,
        kind: str,
        sample_rate: int,
        device=None,
        precision=None,
        configuration: dict | None = None,
        decoding=None,
    ):
        self.kind = kind
        self.configuration, self.decoding = configuration, decoding
        self.device = choose_device(device)
        self.precision = choose_precision(precision, self.device)
        self.network = network.to(self.device).eval().requires_grad_(False)
        self.sample_rate = sample_rate
        for name, value in KINDS[kind].facts(network).items():
            setattr(self, name, value)

    def separate(self, mixture: torch.Tensor, lengths=None) -> torch.Tensor:
        """Separate mixtures, [B, T] to [B, J, T].

        Arguments
        ---------
        mixture : torch.Tensor
            [B, T] ([B, C, T] for a model of several channels), any device, any
            floating type.
        lengths : torch.Tensor, optional
            Real samples of each item, [B]; each then gets what it would get alone. By
            default all are real.

        Returns
        -------
        torch.Tensor
            fp32, on the model's device; of a binaural model [B, J, 2, T]. Scale and sign
            are what training left open.

        Raises
        ------
        UserError
            The mixture has another shape, or is too short.
        """
        if not self.n_sources:
            raise UserError("this model only enhances; it gives no separate sources")
        return self.both(mixture, lengths)[0]

    def enhance(self, mixture: torch.Tensor, lengths=None) -> torch.Tensor:
        """Enhance mixtures, [B, T] to [B, T]; arguments as for :meth:`separate`."""
        if KINDS[self.kind].enhance is None:
            raise UserError(f"models of kind {self.kind} only separate")
        if not self.can_enhance:
            if not self.n_sources:
                raise UserError("this model has no front; it can only recognise")
            raise UserError(
                "this model has no SE module (it was trained with use_se: False); "
                "it can only separate"
            )
        return self.run(KINDS[self.kind].enhance, mixture, lengths).float()

    def both(self, mixture: torch.Tensor, lengths=None):
        """Sources and enhanced mixture from one pass; None for what there is not."""
        signals = self.run(KINDS[self.kind].both, mixture, lengths)
        return tuple(None if signal is None else signal.float() for signal in signals)

    @torch.no_grad()
    def run(self, function, mixture, lengths=None):
        """Call a function of network, mixture and lengths on the device, in the precision."""
        self._check(mixture, lengths)
        mixture = mixture.to(self.device, torch.float32)
        lengths = None if lengths is None else torch.as_tensor(lengths).cpu()
        with self._autocast():
            return function(self.network, mixture, lengths)

    def _autocast(self):
        """The context in which products are computed in the chosen precision."""
        dtype = PRECISIONS[self.precision]
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)

    def _check(self, mixture, lengths) -> None:
        """Stop at what the network would stumble over."""
        shape = tuple(mixture.shape)
        expected = "[B, T]" if self.channels == 1 else f"[B, {self.channels}, T]"
        if len(shape) != (2 if self.channels == 1 else 3) or (
            self.channels > 1 and shape[1] != self.channels
        ):
            raise UserError(f"the mixture has the shape {shape}; expected {expected}")
        shortest = shape[-1] if lengths is None else int(min(lengths))
        if not shape[0] or shortest < self.minimum_samples:
            raise UserError(
                f"the mixture has {shortest} samples in {shape[0]} items; this model "
                f"needs {self.minimum_samples} samples or more"
            )

    def __str__(self):
        """Kind, device and precision, for people to read."""
        size = sum(parameter.numel() for parameter in self.network.parameters())
        return (
            f"{self.kind} model, {self.n_sources} sources, {self.sample_rate} Hz, "
            f"{size:,} parameters, on {self.device} in {self.precision}"
        )


def choose_device(device=None) -> torch.device:
    """The device that was asked for, or the best there is.

    Raises
    ------
    UserError
        There is no such device.

    Example
    -------
    >>> choose_device("cpu")
    device(type='cpu')
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device: {device} cannot be used ({reason})") from error
    return device


def choose_precision(precision, device: torch.device) -> str:
    """The precision that was asked for, fp32 by default.

    Example
    -------
    >>> choose_precision(None, torch.device("cpu"))
    'fp32'
    """
    precision = precision or "fp32"
    if precision not in PRECISIONS:
        raise UserError(
            f"precision: is '{precision}'; expected one of: {', '.join(PRECISIONS)}"
        )
    if precision == "fp16" and device.type != "cuda":
        raise UserError(f"precision: fp16 needs a GPU; on {device} use bf16 or fp32")
    return precision


# ------------------------------------------------------------------ loading


def load_model(folder, device=None, precision=None) -> Model:
    """Load a model from an exported folder, or the best checkpoint of a run's folder.

    Nothing that the folder holds is executed.

    Arguments
    ---------
    folder : str or Path
        What ``export`` wrote, or what ``train.py`` did (``results/<name>/<seed>``).
    device : str or torch.device, optional
        By default a GPU if there is one.
    precision : str, optional
        ``"fp32"`` (default), ``"bf16"`` or ``"fp16"``.

    Returns
    -------
    Model

    Raises
    ------
    UserError
        The folder holds no model, or its configuration or weights are not what they
        should be; says which file and why.

    Example
    -------
    >>> load_model("results/none/of/them")
    Traceback (most recent call last):
    unified_se_ss.errors.UserError: results/none/of/them: there is no such folder
    """
    device = choose_device(device)  # what is wrong with it is said before files are read
    precision = choose_precision(precision, device)
    contents = read_folder(folder)
    return as_model(contents, device, precision)


def as_model(contents, device=None, precision=None) -> Model:
    """The model that a folder describes; arguments as for :func:`load_model`."""
    return Model(
        make_network(contents),
        contents.kind,
        contents.sample_rate,
        device,
        precision,
        contents.configuration(),
        contents.decoding,
    )


def make_network(contents) -> nn.Module:
    """The network that a folder describes, with its weights, on the CPU.

    Names and shapes are compared first, on a network without memory, and a signal goes
    through that; only then is the network made.
    """
    kind = KINDS[contents.kind]
    bare = outline(contents.network, contents.configuration_path)
    check_state(bare.state_dict(), contents.state, contents.weights_path)
    if kind.shape_check is None:
        with fitting(contents):
            shape_check(kind, bare)
    with torch.random.fork_rng(devices=[]):  # first weights, soon replaced
        network = build_network(contents.network, contents.configuration_path)
    network.load_state_dict(contents.state)
    if kind.shape_check is not None:
        with fitting(contents), torch.no_grad():
            kind.shape_check(network.eval())
    return network


def shape_check(kind, bare: nn.Module) -> None:
    """Send shapes through a network without memory."""
    facts = kind.facts(bare)
    channels, samples = facts["channels"], 2 * facts["minimum_samples"]
    shape = (1, samples) if channels == 1 else (1, channels, samples)
    kind.both(bare, torch.empty(shape, device="meta"), None)


@contextmanager
def fitting(contents):
    """Whatever goes wrong in the block is that modules do not fit together."""
    try:
        yield
    except FAULTS as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"{contents.configuration_path}: the parts of the network do not fit "
            f"together ({reason})"
        ) from error
