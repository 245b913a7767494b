"""Random numbers as a function of what they are for: no generator, no state, no order of calls.

A sample's augmentation depends on (seed, epoch, image, repeat) and on nothing else, whichever thread, process or
session of the run prepares it. All samples of a batch are sampled at once.

Legend: B samples.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint64]  # [B]: each identifies the random numbers of one sample
Uniforms = npt.NDArray[np.float64]  # [B, count], each in [0, 1)

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from anything that says what it is for: derive_seed(seed, "order", epoch)."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def sample_keys(seed: int, samples: npt.ArrayLike) -> Keys:
    """Keys [B] of samples [B, 3]: epoch, image, repeat."""
    keys = np.full(len(np.asarray(samples)), derive_seed(seed, "sample"), np.uint64)
    for column in np.asarray(samples, dtype=np.uint64).T:
        keys = _mix(keys + column * _GOLDEN)
    return keys


def uniform(keys: Keys, purpose: str, count: int) -> Uniforms:
    """`count` independent numbers for each sample, [B, count]; another purpose gives other numbers."""
    streams = _mix(keys ^ np.uint64(derive_seed(purpose)))
    counters = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    return (_mix(streams[:, None] + counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def hash32(text: str) -> int:
    """A 32-bit number from a text, the same everywhere and always."""
    return int.from_bytes(
        hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=4).digest(), "little"
    )


def _mix(x: Keys) -> Keys:
    """The output function of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014; constants by Stafford, variant 13)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
