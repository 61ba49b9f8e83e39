"""Speech emotion recognition as distributed batch jobs on Ray.

    raysers.annotate("recordings/")        # one row per clip, as a pandas.DataFrame
    raysers.load_model().score(signal, sample_rate_hz)

Importing this package loads neither torch nor ray; the layers that need them import them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raysers.api import Model, annotate, decode, evaluate, load_model, read

__version__ = "0.1.0"

__all__ = ["Model", "__version__", "annotate", "decode", "evaluate", "load_model", "read"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module("raysers.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
