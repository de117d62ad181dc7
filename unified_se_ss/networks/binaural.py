"""Separation that keeps where the talkers are: two ears in, two ears per talker out.

Axes: B batch, E ears (left, right), T samples, N basis functions, L frames, F bins,
J sources.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from torch import nn
from torch.nn import functional

from unified_se_ss.networks.autoencoder import Decoder, Encoder
from unified_se_ss.networks.causal import OverlapAddStream
from unified_se_ss.networks.conv_tasnet import TemporalConvNet
from unified_se_ss.padding import real_elements

EARS = 2
EPSILON = 1e-8  # power of what counts as silence


class _Front(nn.Module):
    """Each ear for itself, and base of the other fronts: both ears' encoders, or a shared one."""

    def __init__(self, encoder: Callable[[], Encoder], n_encoders: int, causal: bool):
        super().__init__()
        self.encoders = nn.ModuleList(encoder() for _ in range(n_encoders))
        convolution = cast(Encoder, self.encoders[0]).convolution
        self.n_seen = self.n_masked = convolution.out_channels

    def forward(
        self, signal: torch.Tensor, memory: dict | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, E, T] to what the separator gets and what it masks, both [B, E, L, N]."""
        represented = self.by_ear(self.encoders, signal)
        return represented, represented

    @staticmethod
    def by_ear(encoders: list | nn.ModuleList, signal: torch.Tensor) -> torch.Tensor:
        """Represent each ear by its own encoder, or both by the only one; [B, E, L, N]."""
        if len(encoders) == 1:
            represented = encoders[0](signal.flatten(0, 1)).unflatten(0, signal.shape[:2])
        else:
            ears = [encoder(ear) for encoder, ear in zip(encoders, signal.unbind(1))]
            represented = torch.stack(ears, 1)
        return represented.transpose(2, 3)


class _MimoFront(_Front):
    """Both ears for each ear: its own by one encoder, the other one by a second encoder.

    Both representations are masked and decoded together (mask and sum); for the right ear the
    encoders swap roles.

    Source: Han, Luo, Mesgarani, "Real-time binaural speech separation with preserved spatial
    cues", arXiv 2002.06637.
    """

    def __init__(self, encoder: Callable[[], Encoder], n_encoders: int, causal: bool):
        super().__init__(encoder, EARS, causal)
        self.n_seen = self.n_masked = EARS * self.n_masked

    def forward(
        self, signal: torch.Tensor, memory: dict | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, E, T] to what the separator gets and what it masks, both [B, E, L, 2N]."""
        own, other = (self.by_ear([encoder], signal) for encoder in self.encoders)
        represented = torch.cat((own, other.flip(1)), -1)
        return represented, represented


class InterauralFeatures(nn.Module):
    """Differences of an ear's signal from the other ear's, for each frame and frequency.

    Log level difference in bels (tenfold energy: 1), and cosine and sine of the phase
    difference, each for all F bins, from Hann windows of `window` samples (256 is 32 ms at
    8 kHz). A window is centred on the encoder's frame, of `kernel_size` samples, or, if
    causal, ends with it. Silence differs by 0.

    Source: the features of SpeechBrain's BinauralWSJ0Mix, with the phase difference.

    Example
    -------
    >>> left = torch.randn(1, 8000)
    >>> features = InterauralFeatures(16, 8, causal=False)(torch.stack((left, 0.1 * left), 1))
    >>> level, cosine, sine = features[0, 0, 500].view(3, 129)
    >>> round(level.mean().item(), 3), round(cosine.mean().item(), 3)
    (2.0, 1.0)
    """

    window: torch.Tensor

    def __init__(self, kernel_size: int, stride: int, causal: bool, window: int = 256):
        super().__init__()
        more = window - kernel_size
        if more < 0 or (more % 2 and not causal):
            raise ValueError(f"window is {window}; expected even, at least {kernel_size}")
        self.stride = stride
        self.before, self.after = (more, 0) if causal else (more // 2, more // 2)
        self.n_features = 3 * (window // 2 + 1)
        self.register_buffer("window", torch.hann_window(window), persistent=False)

    def forward(self, signal: torch.Tensor, memory: dict | None = None) -> torch.Tensor:
        """[B, E, T] to [B, E, L, 3F], each ear as seen from itself."""
        windows = self.surrounded(signal, memory).unfold(-1, len(self.window), self.stride)
        spectrum = torch.fft.rfft(windows * self.window)  # [B, E, L, F]
        power = spectrum.real.square() + spectrum.imag.square() + EPSILON
        left, right = power.unbind(1)
        level = torch.log10(left / right)
        cross = spectrum[:, 0] * spectrum[:, 1].conj() * torch.rsqrt(left * right)
        # The other way round, levels and phases change their signs.
        from_left = torch.cat((level, cross.real, cross.imag), -1)
        from_right = torch.cat((-level, cross.real, -cross.imag), -1)
        return torch.stack((from_left, from_right), 1)

    def surrounded(self, signal: torch.Tensor, memory: dict | None) -> torch.Tensor:
        """The signal with what came before, and zeros where nothing is known."""
        signal = signal if signal.dtype == torch.float64 else signal.float()
        if memory is None:
            return functional.pad(signal, (self.before, self.after))
        past = memory.get(self)
        if past is None:
            past = signal.new_zeros(*signal.shape[:2], self.before)
        signal = torch.cat((past, signal), -1)
        used = ((signal.shape[-1] - len(self.window)) // self.stride + 1) * self.stride
        memory[self] = signal[..., used : used + self.before].clone()
        return signal


class _CrossFront(_Front):
    """Each ear's representation, and beside it how it differs from the other ear.

    The interaural features pass through a trained projection, the same for both ears.
    """

    def __init__(self, encoder: Callable[[], Encoder], n_encoders: int, causal: bool):
        super().__init__(encoder, n_encoders, causal)
        convolution = cast(Encoder, self.encoders[0]).convolution
        (kernel_size,), (stride,) = convolution.kernel_size, convolution.stride
        self.features = InterauralFeatures(kernel_size, stride, causal)
        self.projection = nn.Linear(self.features.n_features, self.n_masked)
        self.n_seen = 2 * self.n_masked

    def forward(
        self, signal: torch.Tensor, memory: dict | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, E, T] to what the separator gets, [B, E, L, 2N], and what it masks, [B, E, L, N]."""
        represented, masked = super().forward(signal, memory)
        features = self.projection(self.features(signal, memory))
        return torch.cat((represented, features.to(represented.dtype)), -1), masked


# What the separator of an ear sees of both ears. A new variant is one more line.
VARIANTS: dict[str, type[_Front]]
VARIANTS = {"mimo": _MimoFront, "independent": _Front, "cross": _CrossFront}


class BinauralNetwork(nn.Module):
    """Binaural Conv-TasNet: [B, 2, T] to [B, J, 2, T].

    Arguments
    ---------
    variant : str
        ``"mimo"``: masks for both ears' representations, decoded together (the paper's;
        SpeechBrain's "parallel"). ``"independent"``: each ear alone. ``"cross"``: each
        ear, with interaural level and phase differences beside it.
    n_sources : int
        Talkers J.
    n_basis, kernel_size, stride, initial : int, int, int, str
        Of encoders and decoders; a window of 16 samples is 2 ms at 8 kHz.
    n_features, hidden, tcn_kernel_size, blocks, repeats, norm : int or str
        Of the separator, see :class:`~unified_se_ss.networks.TemporalConvNet`.
    causal : bool
        The output depends on the past and on the encoder's window only: for real time
        (:meth:`stream`).
    share_ears : bool
        One separator, one decoder and one set of encoders for both ears by swapped
        roles, so that swapping the ears of the mixture swaps those of the estimates.

    Sources: Han, Luo, Mesgarani, arXiv 2002.06637; sizes of SpeechBrain's BinauralWSJ0Mix,
    whose weights load by
    :func:`~unified_se_ss.networks.speechbrain_weights.binaural_from_speechbrain`.

    Example
    -------
    >>> network = BinauralNetwork("mimo")
    >>> sum(parameter.numel() for parameter in network.parameters())
    1159808
    >>> network = BinauralNetwork("cross", n_sources=3, blocks=2, repeats=1)
    >>> network(torch.randn(4, 2, 803)).shape
    torch.Size([4, 3, 2, 803])
    """

    def __init__(
        self,
        variant: str,
        n_sources: int = 2,
        n_basis: int = 64,
        kernel_size: int = 16,
        stride: int = 8,
        n_features: int = 64,
        hidden: int = 128,
        tcn_kernel_size: int = 3,
        blocks: int = 8,
        repeats: int = 4,
        causal: bool = False,
        norm: str | None = None,
        share_ears: bool = False,
        initial: str = "random",
    ):
        super().__init__()
        if variant not in VARIANTS:
            expected = ", ".join(VARIANTS)
            raise ValueError(f"variant is '{variant}'; expected one of: {expected}")
        self.causal, self.n_sources = causal, n_sources
        self.n_basis, self.kernel_size, self.stride = n_basis, kernel_size, stride
        sizes = (n_basis, kernel_size, stride, initial)
        n_networks = 1 if share_ears else EARS
        self.front = VARIANTS[variant](partial(Encoder, *sizes), n_networks, causal)
        convolutions = n_features, hidden, tcn_kernel_size, blocks, repeats, causal, norm
        seen, masked = self.front.n_seen, self.front.n_masked
        self.separator = TemporalConvNet(
            seen, n_sources, *convolutions, n_masked=masked, n_networks=n_networks
        )
        self.decoders = nn.ModuleList(Decoder(*sizes) for _ in range(n_networks))

    def forward(
        self, mixture: torch.Tensor, lengths: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Separate a batch of binaural mixtures, [B, 2, T], left ear first, to [B, J, 2, T].

        `lengths`, [B], on the CPU (so that nothing waits for a GPU), are the real samples of each
        item, which then gets what it would get alone, and zeros after it.
        """
        if mixture.dim() != 3 or mixture.shape[1] != EARS:
            shape = list(mixture.shape)
            raise ValueError(f"the mixture is {shape}; expected [batch, 2, samples]")
        samples = mixture.shape[-1]
        frames = None
        if lengths is not None and not bool((lengths == samples).all()):
            real = real_elements(lengths, samples, mixture.device)
            mixture = torch.where(real.unsqueeze(1), mixture, 0.0)
            frames = self.frames(lengths)
        # Less than one window is filled up to one.
        mixture = functional.pad(mixture, (0, max(self.kernel_size - samples, 0)))
        separated = self.separate_frames(mixture, frames)
        estimates = self.decode(separated, mixture.shape[-1])[..., :samples]
        if frames is not None:
            estimates = torch.where(real[:, None, None], estimates, 0.0)
        return estimates

    def frames(self, samples: torch.Tensor) -> torch.Tensor:
        """Frames of so many samples, at least one."""
        return cast(Encoder, self.front.encoders[0]).frames(samples).clamp(min=1)

    def separate_frames(
        self,
        signal: torch.Tensor,
        frames: torch.Tensor | None = None,
        memory: dict | None = None,
    ) -> torch.Tensor:
        """Masked representations of all whole frames, [B, E, T] to [B, E, L, J, N].

        Beyond `frames`, [B], on the CPU, all is zero; `memory` is that of a causal network, as in
        ``TemporalConvNet.side_by_side``.
        """
        seen, masked = self.front(signal, memory)
        masks = self.masks(seen, frames, memory)
        separated = masks * masked.unsqueeze(3)
        if self.front.n_masked > self.n_basis:
            # Mask and sum: a decoder is linear, so one decodes the sum.
            separated = separated.unflatten(-1, (-1, self.n_basis)).sum(-2)
        if frames is not None:
            real = real_elements(frames, separated.shape[2], separated.device)
            separated = torch.where(real[:, None, :, None, None], separated, 0.0)
        return separated

    def masks(
        self, seen: torch.Tensor, frames: torch.Tensor | None, memory: dict | None
    ) -> torch.Tensor:
        """Masks of both ears by their separators or by the shared one, [B, E, L, J, N]."""
        if self.separator.n_networks == EARS:
            return self.separator.side_by_side(seen, frames, memory)
        if frames is not None:
            frames = frames.repeat_interleave(EARS)
        one_by_one = seen.flatten(0, 1).unsqueeze(1)
        masks = self.separator.side_by_side(one_by_one, frames, memory)
        return masks.squeeze(1).unflatten(0, seen.shape[:2])

    def decode(self, separated: torch.Tensor, samples: int) -> torch.Tensor:
        """Synthesise so many samples, [B, E, L, J, N] to [B, J, E, T]."""
        separated = separated.permute(0, 1, 3, 4, 2)  # [B, E, J, N, L]
        if len(self.decoders) == 1:
            signal = self.decoders[0](separated.flatten(0, 2), samples)
            return signal.unflatten(0, separated.shape[:3]).transpose(1, 2)
        ears = [
            decoder(ear.flatten(0, 1), samples).unflatten(0, ear.shape[:2])
            for decoder, ear in zip(self.decoders, separated.unbind(1))
        ]
        return torch.stack(ears, 2)

    @property
    def latency(self) -> int:
        """Algorithmic latency of a causal network in samples: the encoder's window (2 ms)."""
        if not self.causal:
            raise ValueError("only a causal network has a latency; set causal=True")
        return self.kernel_size

    def stream(self, n_batch: int = 1) -> BinauralStream:
        """Start to separate `n_batch` signals that come in blocks; for causal networks.

        Example
        -------
        >>> network = BinauralNetwork("mimo", blocks=2, repeats=1, causal=True)
        >>> stream, mixture = network.stream(), torch.randn(1, 2, 800)
        >>> parts = [stream(block) for block in mixture.split(100, -1)] + [stream.flush()]
        >>> torch.allclose(torch.cat(parts, -1), network(mixture), atol=1e-5)
        True
        """
        return BinauralStream(self, n_batch)


class BinauralStream(OverlapAddStream):
    """Separates blocks of any length; joined, they are what the network gives at once.

    Made by :meth:`unified_se_ss.networks.BinauralNetwork.stream`. The network must not be
    trained or moved in between. The output lags behind the input by half of the encoder's
    window to all of it, 2 ms: the algorithmic latency.

    Example
    -------
    >>> network = BinauralNetwork("independent", blocks=2, repeats=1, causal=True)
    >>> stream = network.stream()
    >>> stream(torch.randn(1, 2, 20)).shape, stream(torch.randn(1, 2, 3)).shape
    (torch.Size([1, 2, 2, 8]), torch.Size([1, 2, 2, 0]))
    >>> stream.flush().shape
    torch.Size([1, 2, 2, 15])
    """

    def __init__(self, network: BinauralNetwork, n_batch: int = 1):
        if not network.causal:
            raise ValueError("only a causal network can separate a stream")
        super().__init__(network.kernel_size, network.stride)
        self.network, self.n_batch = network, n_batch
        self.reset()

    def reset(self) -> None:
        """Forget all of the signal; the next block begins another one."""
        weight = next(self.network.parameters())
        self.memory: dict = {}
        self.waiting = weight.new_zeros(self.n_batch, EARS, 0)
        sources, overlap = self.network.n_sources, self.window - self.hop
        self.tail = weight.new_zeros(self.n_batch, sources, EARS, overlap)

    @torch.inference_mode()
    def __call__(self, block: torch.Tensor) -> torch.Tensor:
        """Take the next samples, [B, 2, T], any T; give those that are complete, [B, J, 2, T'].

        T' is a whole number of hops, 0 where a window is not yet full.
        """
        if block.dim() != 3 or block.shape[:2] != (self.n_batch, EARS):
            expected = f"[{self.n_batch}, 2, samples]"
            raise ValueError(f"the block is {list(block.shape)}; expected {expected}")
        return self._advance(block)

    def _synthesised(self, signal: torch.Tensor) -> torch.Tensor:
        separated = self.network.separate_frames(signal, memory=self.memory)
        return self.network.decode(separated, signal.shape[-1])

    @torch.inference_mode()
    def flush(self) -> torch.Tensor:
        """Give the samples that are still missing, fewer than a window, and begin anew."""
        missing = self.waiting.shape[-1]
        if not self.memory:  # less than one window, which the network fills up to one
            rest = self.network(self.waiting) if missing else self.tail[..., :0]
        else:
            rest = functional.pad(self.tail, (0, missing - self.tail.shape[-1]))
        self.reset()
        return rest

    @property
    def state_bytes(self) -> int:
        """Memory that is kept from block to block."""
        return sum(x.nbytes for x in (self.waiting, self.tail, *self.memory.values()))
