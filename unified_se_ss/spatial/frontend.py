"""A beamformer between the signals of several microphones and one signal.

Axes: C microphones, K parts, F bins, L frames, T samples.
"""

from __future__ import annotations

import torch

from unified_se_ss.spatial.beamformers import BEAMFORMERS, Beamformer, noise_context
from unified_se_ss.spatial.geometry import bin_frequencies, near_field_steering

KNOWLEDGE = ("context", "oracle")
# Beamformers that need the place of the target and that of the microphones.
STEERED = ("delay_and_sum", "superdirective", "mvdr")


class BeamformerFrontend:
    """Turns the signals of several microphones into the one that guides a network.

    Short-time spectra with a square-root Hann window and a hop of half of it, a
    beamformer of `BEAMFORMERS`, and back.

    Arguments
    ---------
    beamformer : str
        Name in `BEAMFORMERS` (default "multichannel_wiener", the front-end of GSENet,
        arXiv 2303.07486). "delay_and_sum", "superdirective" and "mvdr" need the places
        of the microphones and the source; the others find the target by statistics.
    sample_rate : int
        Hz (default 16000).
    window : int
        Window of the short-time spectra in samples, even (default 512; inferred).
    context_seconds : float
        With knowledge "context": so much at the beginning of every item holds no
        target (default 0.5; inferred). Of no matter to beamformers without statistics.
    knowledge : str
        "context" (default), or "oracle": target and noise are given apart, as in
        simulated rooms; an upper bound.
    recursive : bool
        Frame by frame, as in a stream: what comes later changes nothing (default False,
        one filter for the whole item).
    options : dict
        Further arguments of the beamformer, such as taps or loading.

    Raises
    ------
    ValueError
        If the name, the knowledge or the window is none, or an option is unknown.

    Example
    -------
    >>> microphones = torch.randn(4, 16000, generator=torch.Generator().manual_seed(0))
    >>> frontend = BeamformerFrontend("multichannel_wiener", taps=2)
    >>> frontend(microphones).shape
    torch.Size([16000])
    """

    def __init__(
        self,
        beamformer: str = "multichannel_wiener",
        *,
        sample_rate: int = 16000,
        window: int = 512,
        context_seconds: float = 0.5,
        knowledge: str = "context",
        recursive: bool = False,
        **options,
    ):
        if beamformer not in BEAMFORMERS:
            raise ValueError(
                f"beamformer: {beamformer!r}, but there are {', '.join(BEAMFORMERS)}"
            )
        if knowledge not in KNOWLEDGE:
            raise ValueError(
                f"knowledge: {knowledge!r}, but it is one of {', '.join(KNOWLEDGE)}"
            )
        if window < 2 or window % 2:
            raise ValueError(f"window: {window}, but an even number of samples is needed")
        if not context_seconds > 0:
            raise ValueError(f"context_seconds: {context_seconds}, but has to be above 0")
        self.name = beamformer
        #: All that its output follows from, for fingerprints.
        self.settings = {
            "beamformer": beamformer,
            "sample_rate": sample_rate,
            "window": window,
            "context_seconds": context_seconds,
            "knowledge": knowledge,
            "recursive": recursive,
            **options,
        }
        self.sample_rate = sample_rate
        self.hop = window // 2
        self.window = torch.hann_window(window).sqrt()
        self.frequencies = bin_frequencies(window, sample_rate)
        self.context_seconds = context_seconds
        self.knowledge = knowledge
        self.options = options
        # A beamformer that needs no place is the same for every item, and is made at once.
        self._unsteered = None if self.is_steered else self._make()

    @property
    def is_steered(self) -> bool:
        """True if it needs the places of microphones and source."""
        return self.name in STEERED

    @property
    def needs_context(self) -> bool:
        """True if items have to begin with noise alone."""
        return self.knowledge == "context" and BEAMFORMERS[self.name].needs_noise

    def __call__(
        self,
        mixture: torch.Tensor,
        *,
        microphones: torch.Tensor | None = None,
        source: torch.Tensor | None = None,
        target: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The beamformer's output.

        Arguments
        ---------
        mixture : torch.Tensor
            Signals of the microphones, [C, T]; the first is the reference.
        microphones, source : torch.Tensor, optional
            Positions in metres, [C, 3] and [3], for beamformers that are steered.
        target, noise : torch.Tensor, optional
            Each alone at the microphones, [C, T], for the oracle.

        Returns
        -------
        torch.Tensor
            [T], the target as the reference microphone has it, with less noise.
        """
        return self.of_parts(
            mixture[None], microphones, source, target=target, noise=noise
        )[0]

    def of_parts(
        self,
        parts: torch.Tensor,
        microphones: torch.Tensor | None = None,
        source: torch.Tensor | None = None,
        *,
        target: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Parts of a mixture, [K, C, T], through the filter for their sum, [K, T].

        The outputs add up to that for the mixture. Everything else as when called; a
        ValueError if the beamformer needs a place, target or noise that is not given.
        """
        beamformer = self._unsteered or self._steered(microphones, source)
        spectra = self._analyse(parts)
        mixture = spectra.sum(0, keepdim=True)
        known = self._known(beamformer, mixture, target, noise)
        if self.settings["recursive"]:
            weights = beamformer.recursive_weights(mixture, **known)
        else:
            weights = beamformer.offline_weights(mixture, **known)
        filtered = beamformer.filtered(weights, spectra)
        return self._synthesise(filtered, parts.shape[-1])

    def _known(self, beamformer, mixture, target, noise) -> dict:
        """Target and noise in the form that the beamformer takes."""
        if not beamformer.needs_noise:
            return {}
        if self.knowledge == "context":
            frames = int(self.context_seconds * self.sample_rate) // self.hop
            # At least one; the frames that reach beyond the context do not count.
            return {"noise": noise_context(mixture, max(1, frames))}
        if target is None or noise is None:
            raise ValueError("knowledge: is 'oracle', but target and noise are not given")
        return {"target": self._analyse(target[None]), "noise": self._analyse(noise[None])}

    def _steered(self, microphones, source) -> Beamformer:
        if microphones is None or source is None:
            raise ValueError(
                f"{self.name}: needs the places of the microphones and the source in "
                f"metres; these find the target by statistics: "
                f"{', '.join(sorted(set(BEAMFORMERS) - set(STEERED)))}"
            )
        microphones = torch.as_tensor(microphones)
        steering = near_field_steering(microphones, source, self.frequencies)
        if self.name == "superdirective":
            return self._make(steering, microphones, self.frequencies)
        return self._make(steering)

    def _make(self, *places) -> Beamformer:
        try:
            return BEAMFORMERS[self.name](*places, **self.options)
        except TypeError as error:
            raise ValueError(f"{self.name}: {error}") from error

    def _analyse(self, signals: torch.Tensor) -> torch.Tensor:
        """Spectra [..., F, L] of signals [K, C, T]."""
        flat = signals.reshape(-1, signals.shape[-1])
        spectrum = torch.stft(
            flat,
            2 * self.hop,
            self.hop,
            window=self.window.to(flat),
            pad_mode="constant",
            return_complex=True,
        )
        return spectrum.reshape(*signals.shape[:-1], *spectrum.shape[-2:])

    def _synthesise(self, spectrum: torch.Tensor, length: int) -> torch.Tensor:
        """Signals [K, T] of spectra [K, F, L]."""
        return torch.istft(
            spectrum,
            2 * self.hop,
            self.hop,
            window=self.window.to(spectrum.real),
            length=length,
        )
