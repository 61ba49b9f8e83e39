"""The paper's experiments as grids of runs."""
