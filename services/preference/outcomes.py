"""Owns what a comparison says about the lead of one subject over another. Pure: arrays in, arrays out.

Davidson's model (bradley_terry.py) seen through an annotator of reliability eta in [0, 1], who reports the winner as
meant with probability eta and the other way round with 1 - eta (Chen et al. 2013, WSDM, "Crowd-BT"; a tie stays a tie):

    P(first) = eta p1 + (1 - eta) p2,   P(second) = eta p2 + (1 - eta) p1,   P(tie) = p_tie

eta = 1 is perfect, 1/2 answers at random, 0 has the sides mixed up.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_SMALL = 1e-300


def shares(lead: Floats, tie: float = 0.0, reliability: Floats | float = 1.0) -> Floats:
    """P(first), P(second), P(tie) stacked, [3, …], for leads […] in natural log-odds."""
    first, second, equal = _meant(np.asarray(lead, dtype=np.float64), tie)
    return np.stack(
        [
            reliability * first + (1 - reliability) * second,
            reliability * second + (1 - reliability) * first,
            equal + np.zeros_like(first * reliability),
        ]
    )


def information(lead: Floats, tie: float = 0.0, reliability: Floats | float = 1.0) -> Floats:
    """[…] Fisher information of one comparison about the lead, per squared log-odds; 1/4 at most without ties."""
    first, second, equal = _meant(np.asarray(lead, dtype=np.float64), tie)
    ahead = first - second
    rise, fall = first * (1 - ahead), -second * (1 + ahead)  # by half the lead
    seen = np.stack(
        [
            reliability * rise + (1 - reliability) * fall,
            reliability * fall + (1 - reliability) * rise,
            -equal * ahead + np.zeros_like(first * reliability),
        ]
    )
    return np.asarray((seen**2 / np.maximum(shares(lead, tie, reliability), _SMALL)).sum(axis=0) / 4)


def entropy(probabilities: Floats) -> Floats:
    """[…] nats, over the first axis."""
    return -np.asarray((probabilities * np.log(np.maximum(probabilities, _SMALL))).sum(axis=0))


def _meant(lead: Floats, tie: float) -> tuple[Floats, Floats, Floats]:
    """Davidson's three shares, without overflow; of an infinite tie (all were ties so far) nothing but ties."""
    if math.isinf(tie):
        return np.zeros_like(lead), np.zeros_like(lead), np.ones_like(lead)
    largest = np.abs(lead) / 2
    up, down = np.exp(lead / 2 - largest), np.exp(-lead / 2 - largest)
    equal = tie * np.exp(-largest)
    total = up + down + equal
    return up / total, down / total, equal / total
