"""Decoding, levels and windows: numpy, soundfile, soxr, scipy; never torch or ray."""
