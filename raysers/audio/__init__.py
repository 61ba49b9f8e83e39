"""Decoding to 16 kHz mono, levels, containers; never torch or ray."""
