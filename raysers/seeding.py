"""Random numbers that are a function of names alone, never of order, worker or time.

Published results depend on the byte layouts: a digest of another size or order is another draw.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np


def seed_of(
    *names: object, size_bytes: int = 16, byteorder: Literal["big", "little"] = "big"
) -> int:
    """An integer of `size_bytes` bytes from the BLAKE2b digest of `names`, joined by NUL.

    Args:
        names: a seed and what is drawn for, as text; stray bytes of file names are allowed.
        size_bytes: size of the digest, 1 to 64.
        byteorder: how its bytes become an integer.

    >>> seed_of(0, "clip", size_bytes=2) == seed_of("0", "clip", size_bytes=2)
    True
    """
    key = "\0".join(map(str, names)).encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(key, digest_size=size_bytes).digest(), byteorder)


def generator(
    *names: object, size_bytes: int = 16, byteorder: Literal["big", "little"] = "big"
) -> np.random.Generator:
    """A generator (PCG64) seeded with `seed_of` the same arguments."""
    seed = seed_of(*names, size_bytes=size_bytes, byteorder=byteorder)
    return np.random.Generator(np.random.PCG64(seed))
