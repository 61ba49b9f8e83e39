"""How fast, how wasteful, how big: `python -m tests.benchmarks [name ...] [--scale small|full]`."""
