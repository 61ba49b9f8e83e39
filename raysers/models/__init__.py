"""Backbones, masking, heads, loading and batched inference on torch and transformers."""
