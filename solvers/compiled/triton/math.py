"""Elementary functions of Triton kernels: accurate near zero, safe for large arguments, NaN stays NaN.

Written from `exp` and `log` alone: Triton's own language has no tanh, and the device library is not there in its
interpreter. Only generated kernels import this module, so Triton is needed for nothing else.
"""

# mypy: ignore-errors

import os

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def tanh(x):
    """Near zero a rational function (Cody and Waite's range, |x| < 0.625), else (1 - exp(-2|x|)) / (1 + exp(-2|x|))."""
    size = tl.abs(x)
    z = size * size
    top = (-0.964399179425052238628 * z - 99.2877231001918586564) * z - 1614.68768441708447952
    bottom = ((z + 112.811678491632931402) * z + 2235.48839060100448583) * z + 4844.06305325125486048
    small = tl.exp(-2.0 * size)
    y = tl.where(size < 0.625, size + size * z * (top / bottom), (1.0 - small) / (1.0 + small))
    return tl.where(x < 0, -y, y)


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)); where exp overflows the quotient is 0."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def expm1(x):
    """exp(x) - 1, near zero as 2 h / (1 - h) with h = tanh(x / 2), which loses no digits."""
    h = tanh(0.5 * x)
    near = tl.abs(x) < 1.0
    return tl.where(near, 2.0 * h / (1.0 - tl.where(near, h, 0.0)), tl.exp(x) - 1.0)


@triton.jit
def log1p(x):
    """log(1 + x), with the rounding of 1 + x made good."""
    u = 1.0 + x
    d = u - 1.0
    y = tl.log(u) * (x / tl.where(d == 0, 1.0, d))
    return tl.where(d == 0, x, tl.where(u == float("inf"), u, y))


@triton.jit
def atan(x):
    """Arc tangent: pi/2 - that of 1/x, pi/4 + that of (x - 1) / (x + 1), and near zero Cephes' rational function."""
    size = tl.abs(x)
    large, middle = size > 2.41421356237309504880, size > 0.41421356237309504880
    y = tl.where(large, -1.0 / tl.where(large, size, 1.0), tl.where(middle, (size - 1.0) / (size + 1.0), size))
    # Bare numbers would be of single precision here.
    right, half = tl.full([], 1.57079632679489661923, x.dtype), tl.full([], 0.78539816339744830962, x.dtype)
    base = tl.where(large, right, tl.where(middle, half, half - half))
    z = y * y
    top = (
        ((-0.8750608600031904122785 * z - 16.15753718733365076637) * z - 75.00855792314704667340) * z
        - 122.8866684490136173410
    ) * z - 64.85021904942025371773
    bottom = (
        (((z + 24.85846490142306297962) * z + 165.0270098316988542046) * z + 432.8810604912902668951) * z
        + 485.3903996359136964868
    ) * z + 194.5506571482613964425
    y = base + (y + y * z * (top / bottom))
    return tl.where(x < 0, -y, y)


@triton.jit
def sign(x):
    """-1, 0 or 1."""
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, x))


@triton.jit
def larger(a, b):
    """The maximum, NaN where either is."""
    return tl.where((a > b) | (a != a), a, b)


@triton.jit
def smaller(a, b):
    """The minimum, NaN where either is."""
    return tl.where((a < b) | (a != a), a, b)


@triton.jit
def half_dot(x, matrix, total):
    """`total` plus x times a matrix of bfloat16: operands in bfloat16, sums in float32."""
    if INTERPRETED:
        # The interpreter's products take bfloat16 for whole numbers, and its casts cut digits off: round as a GPU does.
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
        total = tl.dot(x, matrix.to(tl.float32), total, input_precision="ieee")
    else:
        total = tl.dot(x.to(tl.bfloat16), matrix, total)
    return total
