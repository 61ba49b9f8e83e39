"""Draws from names: the byte layouts that published results depend on, spelled out."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from raysers.robustness import perturbations as perturbation
from raysers.types import generator, seed_of


@pytest.mark.parametrize("names", [(), (0,), (7, "a\0b"), (1, "säge", "white_noise", 0)])
@pytest.mark.parametrize(
    ("size_bytes", "order"), [(16, "big"), (16, "little"), (8, "big"), (7, "big")]
)
def test_seed_is_the_digest_of_the_joined_names(names, size_bytes, order):
    key = "\0".join(str(name) for name in names).encode()
    digest = hashlib.blake2b(key, digest_size=size_bytes).digest()
    assert seed_of(*names, size_bytes=size_bytes, byteorder=order) == int.from_bytes(digest, order)
    drawn = generator(*names, size_bytes=size_bytes, byteorder=order).integers(0, 2**62, 8)
    expected = np.random.default_rng(int.from_bytes(digest, order)).integers(0, 2**62, 8)
    assert drawn.tolist() == expected.tolist()


def test_names_with_stray_bytes_are_drawn_for():
    assert seed_of("a\udcff.wav") == seed_of(b"a\xff.wav".decode("utf-8", "surrogateescape"))


def test_perturbations_read_the_digest_from_its_low_end():
    digest = hashlib.blake2b(b"3\0clip\0white_noise\0" + b"1", digest_size=16).digest()
    expected = np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))
    drawn = perturbation.generator(3, "clip", "white_noise", 1)
    assert drawn.normal(size=4).tolist() == expected.normal(size=4).tolist()


def test_draws_do_not_depend_on_the_process():
    code = "from raysers.types import generator; print(generator(5, 'x').integers(0, 2**62))"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert int(found.stdout) == generator(5, "x").integers(0, 2**62)
