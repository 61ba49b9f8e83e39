"""Perturbations of clips, and how much scores change under them."""
