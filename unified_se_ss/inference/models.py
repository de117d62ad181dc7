"""A trained model: loaded from an exported folder or a run's folder, and what it can do.

Axes: B batch, T samples, J sources.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext

import torch
from torch import nn

from unified_se_ss.errors import UserError
from unified_se_ss.inference.configuration import build_network, outline
from unified_se_ss.inference.families import KINDS
from unified_se_ss.inference.folders import check_state, read_folder

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


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
    >>> from unified_se_ss.networks import GSENet
    >>> model = Model(GSENet([[4, 8, 2, 2, True]], bottleneck=4), "gsenet", 16000, "cpu")
    >>> print(model)
    gsenet model, 0 sources, 16000 Hz, 4,454 parameters, on cpu in fp32
    >>> model.enhance(torch.randn(3, 2, 400)).shape
    torch.Size([3, 400])
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
        for name, value in KINDS[kind].properties(network).items():
            setattr(self, name, value)

    @property
    def tasks(self) -> list[str]:
        """Those of separate, enhance and recognise that the model can do."""
        able = {
            "separate": self.n_sources,
            "enhance": self.can_enhance,
            "recognise": self.decoding,
        }
        return [task for task, is_able in able.items() if is_able]

    def check_task(self, task: str) -> None:
        """Stop at a task that the model was not made for."""
        if task not in self.tasks:
            raise UserError(
                f"this {self.kind} model cannot {task}; it can {' and '.join(self.tasks)}"
            )

    def separate(self, mixture: torch.Tensor, lengths=None) -> torch.Tensor:
        """Separate mixtures, [B, T] to [B, J, T].

        Arguments
        ---------
        mixture : torch.Tensor
            [B, T] ([B, C, T] for a model of several channels), any device, any
            floating type.
        lengths : torch.Tensor, optional
            Real samples of each item, [B]; each then gets what it would get alone.

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
        self.check_task("separate")
        return self.both(mixture, lengths)[0]

    def enhance(self, mixture: torch.Tensor, lengths=None) -> torch.Tensor:
        """Enhance mixtures, [B, T] to [B, T]; arguments as for :meth:`separate`."""
        self.check_task("enhance")
        enhance = KINDS[self.kind].enhance
        if enhance is None:
            return self.both(mixture, lengths)[1]
        return self.run(enhance, mixture, lengths).float()

    def both(self, mixture: torch.Tensor, lengths=None):
        """Sources and enhanced mixture from one pass; None for what there is not."""
        signals = self.run(KINDS[self.kind].forward, mixture, lengths)
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
        dtype = PRECISIONS[self.precision]
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)

    def _check(self, mixture, lengths) -> None:
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
        size = sum(parameter.numel() for parameter in self.network.parameters())
        return (
            f"{self.kind} model, {self.n_sources} sources, {self.sample_rate} Hz, "
            f"{size:,} parameters, on {self.device} in {self.precision}"
        )


def choose_device(device=None) -> torch.device:
    """The device that was asked for, or the best there is; a UserError if there is none such."""
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
    """The precision that was asked for, fp32 by default."""
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
    device, precision : optional
        As for :class:`Model`.

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
    return Model(
        _network(contents),
        contents.kind,
        contents.sample_rate,
        device,
        precision,
        contents.configuration(),
        contents.decoding,
    )


def _network(contents) -> nn.Module:
    """The network that a folder describes, with its weights, on the CPU.

    Names and shapes are compared first, on a network without memory, and a signal goes
    through that; only then is the network made.
    """
    family = KINDS[contents.kind]
    bare = outline(contents.network, contents.configuration_path)
    check_state(bare.state_dict(), contents.state, contents.weights_path)
    if family.shape_check is None:
        with _fitting(contents):
            _shape_check(family, bare)
    with torch.random.fork_rng(devices=[]):  # first weights, soon replaced
        network = build_network(contents.network, contents.configuration_path)
    network.load_state_dict(contents.state)
    if family.shape_check is not None:
        with _fitting(contents), torch.no_grad():
            family.shape_check(network.eval())
    return network


def _shape_check(family, bare: nn.Module) -> None:
    """Send shapes through a network without memory."""
    properties = family.properties(bare)
    channels, samples = properties["channels"], 2 * properties["minimum_samples"]
    shape = (1, samples) if channels == 1 else (1, channels, samples)
    family.forward(bare, torch.empty(shape, device="meta"), None)


@contextmanager
def _fitting(contents):
    """Whatever goes wrong in the block is that modules do not fit together."""
    try:
        yield
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"{contents.configuration_path}: the parts of the network do not fit "
            f"together ({reason})"
        ) from error
