"""Speech recognisers of SpeechBrain, for word error rates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from unified_se_ss.data.audio import resample
from unified_se_ss.errors import UserError

#: Classes that can transcribe, by what their YAML must hold.
CLASSES = ("EncoderASR", "EncoderDecoderASR", "WhisperASR")


class ASRModel:
    """Signals to words.

    Arguments
    ---------
    model : speechbrain.inference.interfaces.Pretrained
        Its ``transcribe_batch`` takes signals [B, T] and relative lengths [B].
    name : str
        Where it came from, for reports.
    """

    def __init__(self, model, name: str):
        self.model, self.name = model, name
        self.sample_rate = int(getattr(model.hparams, "sample_rate", 16000))

    @torch.no_grad()
    def transcribe(self, signals, sample_rate: int) -> list[str]:
        """The words of signals, each recognised on its own.

        Arguments
        ---------
        signals : list of np.ndarray
            Of shape [T].
        sample_rate : int
            Theirs in Hz; resampled to the recogniser's by soxr.

        Returns
        -------
        list of str
        """
        texts = []
        for signal in signals:
            signal = np.asarray(signal, dtype=np.float32)
            heard = torch.from_numpy(resample(signal, sample_rate, self.sample_rate))
            words, _ = self.model.transcribe_batch(heard[None], torch.ones(1))
            texts.append(words[0] if isinstance(words[0], str) else " ".join(words[0]))
        return texts


def load_asr_model(source: str, device: str = "cpu") -> ASRModel:
    """Load a recogniser of SpeechBrain.

    SpeechBrain makes what the recogniser's ``hyperparams.yaml`` names, which runs code:
    only from whom you trust.

    Arguments
    ---------
    source : str
        A folder with ``hyperparams.yaml``, or a name on the hub.
    device : str
        Default ``"cpu"``.

    Returns
    -------
    ASRModel

    Raises
    ------
    UserError
        It is not there, or no recogniser.
    """
    from speechbrain.inference import ASR
    from speechbrain.utils.fetching import LocalStrategy

    if Path(source).is_dir() and not (Path(source) / "hyperparams.yaml").is_file():
        raise UserError(
            f"recogniser: {source} holds no hyperparams.yaml; expected a folder of a "
            "SpeechBrain recogniser, or its name on the hub"
        )
    reasons = []
    for name in CLASSES:
        try:
            model = getattr(ASR, name).from_hparams(
                source=str(source),
                local_strategy=LocalStrategy.NO_LINK,  # files are read where they are
                run_opts={"device": str(device)},
            )
            return ASRModel(model, str(source))
        except Exception as error:  # whatever the YAML's own code raises
            lines = str(error).strip().splitlines() or [type(error).__name__]
            reasons.append(f"as {name}: {lines[0]}")
    raise UserError(
        f"recogniser: {source} cannot be loaded; expected a folder of a SpeechBrain "
        f"recogniser, or its name on the hub ({'; '.join(reasons)})"
    )
