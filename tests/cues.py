"""Interaural differences of a pair of ears, for tests."""

from unified_se_ss.evaluation.interaural import interaural_cues


def itd(ears, rate):
    """Time difference in µs, [...] of [..., E, T]."""
    return interaural_cues(ears, rate)[0]


def ild(ears, rate=8000, band=None):
    """Level difference in dB, of the whole signal or of one of BANDS."""
    levels = interaural_cues(ears, rate)[1]
    return levels["ild" if band is None else f"ild_{band[0]}_{band[1]}"]
