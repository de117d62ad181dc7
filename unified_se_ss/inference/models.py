"""Kinds of models: what differs between them, and a trained network that is ready to use.

A new kind is one entry of KINDS.

Axes: B batch, T samples, J sources.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from unified_se_ss.errors import UserError
from unified_se_ss.networks import BinauralNetwork, GSENet, UnifiedNetwork

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class ModelFamily:
    """Properties that the models of one recipe have in common.

    Arguments
    ---------
    network : type
        Class of the outermost network.
    best : str
        What the recipe chooses its checkpoint by; the larger the better.
    properties : callable
        From the network, those of :class:`~unified_se_ss.inference.Model` that follow
        from it: ``n_sources``, ``channels``, ``causal``, ``minimum_samples``,
        ``can_enhance``, and ``ears`` where a source has several channels.
    forward : callable
        ``(network, mixture, lengths)`` to sources [B, J, T] (None for a model that
        only enhances) and enhanced mixture [B, T] (None for one that only separates).
    enhance : callable, optional
        The same arguments to the enhanced mixture alone, without the work for sources;
        by default the second of `forward`.
    parts : tuple of str
        A run's modules: the network, or those that are arguments of `network`; the
        first must be there.
    pipeline : str
        Class of :mod:`~unified_se_ss.inference.pipeline` that takes recordings.
    evaluation : str
        A name in ``EVALUATIONS`` of :mod:`unified_se_ss.evaluate_model`.
    recognises : bool
        Whether there are a tokenizer and a search beside the network.
    """

    network: type[nn.Module]
    best: str
    properties: Callable
    forward: Callable
    enhance: Callable | None = None
    parts: tuple[str, ...] = ("network",)
    pipeline: str = "Separator"
    evaluation: str = "separation"
    recognises: bool = False


def _unified_properties(network) -> dict:
    return {
        "n_sources": network.separator.n_sources,
        "channels": 1,
        "causal": False,  # global norms, both directions
        "minimum_samples": network.encoder.convolution.kernel_size[0],
        "can_enhance": network.enhancer is not None,
    }


def _unified_forward(network, mixture, lengths):
    output = network(mixture, lengths)
    return output.sources, output.enhanced


def _gsenet_properties(network) -> dict:
    return {
        "n_sources": 0,
        "channels": 2,  # raw reference microphone, beamformer
        "causal": True,
        "minimum_samples": 1,
        "can_enhance": True,
    }


def _binaural_properties(network) -> dict:
    return {
        "n_sources": network.n_sources,
        "channels": 2,  # left ear, right ear
        "ears": 2,
        "causal": network.causal,
        "minimum_samples": 1,
        "can_enhance": False,
    }


class RecognitionSystem(nn.Module):
    """A recogniser and, if there is one, its front, so that they are weights of one file."""

    def __init__(self, recogniser: nn.Module, front: nn.Module | None = None):
        super().__init__()
        self.recogniser, self.front = recogniser, front
        spectrum = recogniser.features.compute_STFT
        if spectrum.hop_length != recogniser.hop:
            raise ValueError(
                f"hop: is {recogniser.hop} samples; the features' is {spectrum.hop_length}"
            )

    def forward(self, noisy: torch.Tensor, lengths=None, tokens=None):
        enhanced = self.enhance(noisy, lengths)
        signals = noisy if enhanced is None else enhanced
        return enhanced, self.recogniser(signals, lengths, tokens)

    def enhance(self, noisy: torch.Tensor, lengths=None):
        """Signals [B, T] through the front; None without one."""
        return None if self.front is None else self.front(noisy, lengths).signal

    def shape_check(self) -> None:
        """Send a short signal and two tokens through all modules."""
        signal = torch.zeros(1, 2 * self.minimum_samples)
        self(signal, None, torch.tensor([[1, self.n_tokens - 1]]))

    @property
    def n_tokens(self) -> int:
        """Tokens that the recogniser knows."""
        return self.recogniser.attention.w.out_features

    @property
    def minimum_samples(self) -> int:
        """The fewest samples in which the recogniser has a frame."""
        samples = self.recogniser.hop
        while self.recogniser.count_frames(samples) < 1:
            samples += self.recogniser.hop
        return samples

    @property
    def maximum_samples(self) -> int:
        """The most whose frames and tokens all have positions.

        SpeechBrain's positions end with its transformer's ``max_length``.
        """
        modules = self.recogniser.transformer.modules()
        positions = min(m.max_len for m in modules if hasattr(m, "max_len"))
        samples = 4 * positions * self.recogniser.hop
        while self.recogniser.count_frames(samples) > positions:
            samples -= self.recogniser.hop
        return samples


def _recogniser_properties(network) -> dict:
    return {
        "n_sources": 0,
        "channels": 1,
        "causal": False,  # both directions, attention
        "minimum_samples": 1,
        "can_enhance": network.front is not None,
    }


# By the name that config.json gives as "kind".
KINDS = {
    "unified": ModelFamily(
        UnifiedNetwork,
        best="si_snr_i",
        properties=_unified_properties,
        forward=_unified_forward,
        enhance=UnifiedNetwork.enhance,
    ),
    "gsenet": ModelFamily(
        GSENet,
        best="si_snr_i",
        properties=_gsenet_properties,
        forward=lambda network, mixture, lengths: (None, network(mixture, lengths)),
        pipeline="GuidedEnhancer",
        evaluation="guided",
    ),
    "binaural": ModelFamily(
        BinauralNetwork,
        best="snr_i",
        properties=_binaural_properties,
        forward=lambda network, mixture, lengths: (network(mixture, lengths), None),
        pipeline="BinauralSeparator",
        evaluation="binaural",
    ),
    "recogniser": ModelFamily(
        RecognitionSystem,
        best="accuracy",
        properties=_recogniser_properties,
        forward=lambda network, mixture, lengths: (None, network.enhance(mixture, lengths)),
        parts=("recogniser", "front"),
        pipeline="Recognizer",
        evaluation="recognition",
        recognises=True,
    ),
}


# ------------------------------------------------------------------ models


class Model:
    """A network that is ready to use, whichever recipe trained it.

    Arguments
    ---------
    network : torch.nn.Module
        Is put into evaluation mode and on `device`.
    kind : str
        A name in :data:`~unified_se_ss.inference.models.KINDS`.
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

    Example
    -------
    >>> from unified_se_ss.networks import GSENet
    >>> model = Model(GSENet([[4, 8, 2, 2, True]], bottleneck=4), "gsenet", 16000, "cpu")
    >>> print(model)
    gsenet model, 0 sources, 16000 Hz, 4,454 parameters, on cpu in fp32
    >>> model.enhance(torch.randn(3, 2, 400)).shape
    torch.Size([3, 400])
    """

    n_sources: int  #: Sources J; 0 for a model that only enhances.
    channels: int  #: Of the input; 1 is mono.
    ears: int = 1  #: Channels of each source; 2 for a binaural model.
    causal: bool  #: The output depends on no later input (beyond the window).
    minimum_samples: int  #: The shortest input that the network can take.
    can_enhance: bool  #: :meth:`enhance` gives something.

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
