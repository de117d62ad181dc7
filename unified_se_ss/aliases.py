"""Former names of what a YAML file may name; to be removed in 1.0."""

import functools
import logging
import re

logger = logging.getLogger(__name__)

#: Former path of a class or a function within the package, and today's.
ALIASES = {
    "data.ContrastGains": "data.scenes.PairedRIRGains",
    "data.RoomSettings": "data.rooms.RoomSettings",
    "data.binaural_demo.prepare_binaural_demo": "data.demo.binaural.prepare_binaural_demo",
    "data.binaural_heads.binaural_heads": "data.hrtf_bank.binaural_heads",
    "data.binaural_rooms": "data.rooms",
    "data.binaural_rooms.RoomsAround": "data.rooms.BinauralRoomConfig",
    "data.contrast.ContrastGains": "data.scenes.PairedRIRGains",
    "data.demo_corpus.prepare_demo_corpus": "data.demo.corpus.prepare_demo_corpus",
    "data.demo_sounds.prepare_demo_sounds": "data.demo.array_sounds.prepare_demo_sounds",
    "data.paired_rirs": "data.scenes",
    "recognition.network": "recognition",
    "recognition.search": "recognition",
    "spatial.arrays": "spatial",
    "spatial.Guide": "spatial.BeamformerFrontend",
    "spatial.guide.Guide": "spatial.frontend.BeamformerFrontend",
}
_FORMER = re.compile(
    rf"(!\w+:unified_se_ss\.)({'|'.join(map(re.escape, sorted(ALIASES, key=len)[::-1]))})\b"
)


def with_current_names(text: str, file) -> str:
    """A YAML file's text with today's names for former ones, with one line of warning.

    Example
    -------
    >>> with_current_names("arrays: !new:unified_se_ss.spatial.Guide", "a.yaml")
    'arrays: !new:unified_se_ss.spatial.BeamformerFrontend'
    """
    former = sorted({found[2] for found in _FORMER.finditer(text)})
    if former:
        changes = ", ".join(f"{name} is now {ALIASES[name]}" for name in former)
        _warn_once(f"{file}: former names, which 1.0 will not know: {changes}")
    return _FORMER.sub(lambda found: found[1] + ALIASES[found[2]], text)


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning(message)
