"""Synthetic corpora that the demos train on."""
