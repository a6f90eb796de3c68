"""Where in its rounding cell a master begins: anywhere, so that a bfloat16 cast follows it from the first step on.

A model that comes in bfloat16 gives masters that lie in the middle of their cells, and steps smaller than half a cell
then change nothing of what is served: at a rate of 1e-5 a weight of 0.1, whose cell is 5e-4 wide, stands still for 24
steps in one direction, and most never go that far. Begun anywhere in its cell with even chance, a master that has moved
by a share p of it has changed its cast with probability p: what is served moves, on average, as the masters do
(dithering: Roberts, Picture coding using pseudo-random noise, 1962). At the start the casts are the weights themselves,
bit for bit.
"""

from __future__ import annotations

import torch

# bfloat16 is the upper half of float32's bits: a cell reaches half of the lower half to either side, its ends left out.
_REACH = (1 << 15) - 1
# Elements at a time, so that what is computed of them stays in the cache.
_PART = 1 << 18
# Odd, so that multiplying by them loses no bit: Knuth's 2^32 / golden ratio, and two of xxHash's primes, as int32.
_NUMBERS, _VALUES, _MIXED = -1640531535, -2048144777, -1028477379


def dithered(weight: torch.Tensor) -> torch.Tensor:
    """float32 values that round to these bfloat16 ones (finite, any shape), each anywhere in its cell.

    Zeros stay zeros. The places are a function of the values and their order alone: every process, and every resume,
    finds the same. Weights of another dtype are as they are.
    """
    if weight.dtype != torch.bfloat16:
        return weight.detach().float()
    found = weight.detach().float().contiguous()
    flat = found.view(-1).view(torch.int32)
    for begin in range(0, len(flat), _PART):
        bits = flat[begin : begin + _PART]
        # A zero has no bits to take an offset from; -0.0 has its sign alone.
        bits += _offsets(bits, begin) * (bits << 1 != 0)
    return found


def _offsets(bits: torch.Tensor, first: int) -> torch.Tensor:
    """Whole numbers of [-_REACH, _REACH], int32, for float32 bits [n] of elements numbered from `first`.

    A hash of number and value: neighbours, and the same place of another tensor, get offsets that have nothing to do
    with each other.
    """
    numbers = torch.arange(first, first + len(bits), device=bits.device).to(torch.int32)
    mixed = numbers.mul_(_NUMBERS).bitwise_xor_((bits >> 16).mul_(_VALUES))
    mixed.bitwise_xor_(mixed >> 15).mul_(_MIXED)
    return mixed.bitwise_right_shift_(16).clamp_(min=-_REACH)
