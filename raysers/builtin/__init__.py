"""How the built-in model was made: `python -m raysers.builtin.convert`, then `.fit`."""
