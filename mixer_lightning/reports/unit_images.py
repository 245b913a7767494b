"""Measures of weight images, and the order in which they are shown. NumPy only.

N units   h, w sides of the grid on which the weights of a unit stand
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

NO_UNIT = -1  # a place that stays empty, since no unit is left that is opposite to the one before
SMALLEST_SHARE = 1e-12  # of a unit's power: what is below is rounding


def norms(images: Images) -> Floats:
    """Euclidean norm of each unit's weights: [N, h, w] -> [N]."""
    lengths: Floats = np.sqrt(np.square(images.astype(np.float64)).sum(axis=(1, 2)))
    return lengths


def spectral_centroids(images: Images) -> Floats:
    """Mean spatial frequency of each unit, in cycles per position: [N, h, w] -> [N].

    The frequencies (f_y, f_x) of the two-dimensional discrete Fourier transform are weighed by their power; their
    length is averaged, the constant part left out. 0 for a unit of equal weights, at most sqrt(1/2).
    """
    power = np.abs(np.fft.fft2(images.astype(np.float64))) ** 2  # [N, h, w]
    total = power.sum(axis=(1, 2))
    power[:, 0, 0] = 0
    height, width = images.shape[1:]
    length = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])  # [h, w]
    varying = power.sum(axis=(1, 2))
    is_constant = varying <= SMALLEST_SHARE * total
    return np.where(is_constant, 0.0, (power * length).sum(axis=(1, 2)) / np.where(is_constant, 1, varying))


def neighbour_cosines(images: Images) -> Floats:
    """How alike each unit's weights are to those of their 4-neighbours: [N, h, w] -> [N], from -1 to 1.

    The cosine of the angle between the weights at one end and at the other of all pairs of neighbours, every pair in
    both directions: 1 for equal weights, -1 for a chessboard, about 0 for weights drawn independently around 0; 0 for
    a grid of one position.
    """
    x = images.astype(np.float64)
    products = (x[:, 1:] * x[:, :-1]).sum(axis=(1, 2)) + (x[:, :, 1:] * x[:, :, :-1]).sum(axis=(1, 2))
    squares = np.square(x)
    pairs = sum(
        each.sum(axis=(1, 2))
        for each in (squares[:, 1:], squares[:, :-1], squares[:, :, 1:], squares[:, :, :-1])
    )
    cosines: Floats = 2 * products / np.where(pairs == 0, 1, pairs)
    return cosines


def opposites_in_order(images: Images) -> tuple[Indices, Floats]:
    """The order in which units are shown, from low to high frequency, each before its closest opposite.

    Greedy: the unit of the lowest spectral centroid that is left comes next, then of those left the one of the most
    negative cosine similarity to it. Where none is negative, the place beside it stays empty.

    Returns:
        Indices of units, two for each pair, NO_UNIT for an empty place: [2 * pairs]; and the cosine similarity of each
        pair, NaN beside an empty place: [pairs].
    """
    flat = images.reshape(len(images), -1).astype(np.float64)
    length = norms(images)[:, None]
    directions = flat / np.where(length == 0, 1, length)
    is_left = np.ones(len(images), dtype=bool)
    order: list[int] = []
    cosines: list[float] = []
    for unit in np.argsort(spectral_centroids(images), kind="stable"):
        if not is_left[unit]:
            continue
        is_left[unit] = False
        similarity = np.where(is_left, directions @ directions[unit], np.inf)
        other = int(np.argmin(similarity))
        has_partner = bool(similarity[other] < 0)
        if has_partner:
            is_left[other] = False
        order += [int(unit), other if has_partner else NO_UNIT]
        cosines.append(float(similarity[other]) if has_partner else np.nan)
    return np.array(order, dtype=np.int64), np.array(cosines)
