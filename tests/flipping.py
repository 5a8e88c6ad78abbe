"""Damages files as a failing disk does."""

import random


def flipped(data: bytes, rng: random.Random) -> bytes:
    """The data with one bit of it turned."""
    turned = bytearray(data)
    turned[rng.randrange(len(turned))] ^= 1 << rng.randrange(8)
    return bytes(turned)
