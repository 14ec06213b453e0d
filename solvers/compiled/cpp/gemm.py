"""Products of our own, for processors whose vectors those of the BLAS that torch carries leave half unused.

MKL takes its 256-bit code on every processor that is not Intel's, whatever that could do. There, blocks of the result
that stay in 512-bit registers over the whole inner dimension are more than twice as fast. The function has the
arguments of BLAS's gemm, so that the generated code does not know which one it calls.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from solvers.compiled.cpp import compiler as build
from solvers.compiled.step.refused import Refused

#: Says whose products to take: "own" or "library"; those that suit the processor when not set.
PRODUCTS = "NEURALOSC_PRODUCTS"

SOURCE = """
#include <cstdint>
#include <cstring>
#include <vector>
#ifdef HALF
#include <immintrin.h>
#endif

namespace {

// A vector register, at any address. So many rows of two such fit the registers, with room for the operands.
constexpr int LANES = BYTES / (int)sizeof(real), WIDE = 2 * LANES, MOST = BYTES == 64 ? 12 : 5;
typedef real lanes __attribute__((vector_size(BYTES), aligned(sizeof(real)), may_alias));

#ifdef HALF
// Operands in bfloat16, two of consecutive k at a time, sums in float32.
typedef uint32_t item;
typedef item items __attribute__((vector_size(BYTES), aligned(sizeof(item)), may_alias));
inline lanes fused(lanes sum, item value, items row) {
  return (lanes)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32((int)value), (__m512bh)row);
}
// Rounded to nearest, ties to even.
inline item half(real value) {
  item bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return value != value ? 0x7fc0 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}
#else
typedef real item;
typedef lanes items;
inline lanes fused(lanes sum, item value, items row) { return sum + value * row; }
#endif

// out (ROWS, WIDE) [+]= x m, kept in registers over all k. Rows of x are ldx apart; those of its transpose, 1.
template <bool TRANSPOSED, int ROWS>
void block(int64_t k, const item* x, int64_t ldx, const item* m, int64_t ldm, real* out, int64_t ldo, bool add) {
  lanes left[ROWS], right[ROWS];
#pragma GCC unroll 12
  for (int r = 0; r < ROWS; ++r) {
    left[r] = add ? *(const lanes*)(out + r * ldo) : lanes{};
    right[r] = add ? *(const lanes*)(out + r * ldo + LANES) : lanes{};
  }
  for (int64_t i = 0; i < k; ++i) {
    const items near = *(const items*)(m + i * ldm), far = *(const items*)(m + i * ldm + LANES);
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; ++r) {
      const item value = TRANSPOSED ? x[i * ldx + r] : x[r * ldx + i];
      left[r] = fused(left[r], value, near);
      right[r] = fused(right[r], value, far);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < ROWS; ++r) {
    *(lanes*)(out + r * ldo) = left[r];
    *(lanes*)(out + r * ldo + LANES) = right[r];
  }
}

typedef void (*Block)(int64_t, const item*, int64_t, const item*, int64_t, real*, int64_t, bool);
template <bool T> const Block* blocks() {
#define ROWS(r) block<T, (r < MOST ? r : MOST)>
  static constexpr Block table[] = {ROWS(1), ROWS(2), ROWS(3), ROWS(4),  ROWS(5),  ROWS(6),
                                    ROWS(7), ROWS(8), ROWS(9), ROWS(10), ROWS(11), ROWS(12)};
  return table;
}

// WIDE columns of all rows, in blocks of about as many rows each.
template <bool T>
void panel(int64_t rows, int64_t k, const item* x, int64_t ldx, const item* m, int64_t ldm, real* out, int64_t ldo,
           bool add) {
  const int64_t parts = (rows + MOST - 1) / MOST, apart = T ? 1 : ldx;
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t first = rows * part / parts, count = rows * (part + 1) / parts - first;
    blocks<T>()[count - 1](k, x + first * apart, ldx, m, ldm, out + first * ldo, ldo, add);
  }
}

// The last columns, fewer than WIDE: the same on copies that are filled up with zeros.
template <bool T>
void rest(int64_t rows, int64_t k, int64_t columns, const item* x, int64_t ldx, const item* m, int64_t ldm, real* out,
          int64_t ldo, bool add) {
  thread_local std::vector<item> filled;
  thread_local std::vector<real> sums;
  filled.assign(k * WIDE, 0);
  sums.resize(rows * WIDE);
  for (int64_t i = 0; i < k; ++i) std::memcpy(filled.data() + i * WIDE, m + i * ldm, columns * sizeof(item));
  panel<T>(rows, k, x, ldx, filled.data(), WIDE, sums.data(), WIDE, false);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) out[r * ldo + c] = (add ? out[r * ldo + c] : real(0)) + sums[r * WIDE + c];
}

// Rows that stay in the cache while the columns pass; of a transposed x, so many of its own rows.
constexpr int64_t NEAR = 192;

template <bool T>
void product(int64_t rows, int64_t columns, int64_t k, const item* x, int64_t ldx, const item* m, int64_t ldm,
             real* out, int64_t ldo, bool add) {
  const int64_t depth = T ? NEAR : k;
  if (k == 0 && !add)
    for (int64_t r = 0; r < rows; ++r) std::memset(out + r * ldo, 0, columns * sizeof(real));
  for (int64_t i = 0; i < k; i += depth, add = true) {
    const int64_t deep = k - i < depth ? k - i : depth;
    for (int64_t top = 0; top < rows; top += NEAR) {
      const int64_t high = rows - top < NEAR ? rows - top : NEAR;
      const item *from = x + i * (T ? ldx : 1) + top * (T ? 1 : ldx), *right = m + i * ldm;
      real* to = out + top * ldo;
      int64_t c = 0;
      for (; c + WIDE <= columns; c += WIDE) panel<T>(high, deep, from, ldx, right + c, ldm, to + c, ldo, add);
      if (c < columns) rest<T>(high, deep, columns - c, from, ldx, right + c, ldm, to + c, ldo, add);
    }
  }
}

#ifdef HALF
// Rows in pairs: two of x, or of y, for each item.
inline void paired(const real* x, int64_t ld, int64_t rows, int64_t columns, item* out) {
  for (int64_t i = 0; i < rows; i += 2) {
    const real *low = x + i * ld, *high = i + 1 < rows ? low + ld : nullptr;
    for (int64_t j = 0; j < columns; ++j) out[j] = half(low[j]);
    if (high)
      for (int64_t j = 0; j < columns; ++j) out[j] |= half(high[j]) << 16;
    out += columns;
  }
}
// Neighbours in a row in pairs.
inline void neighbours(const real* x, int64_t ld, int64_t rows, int64_t columns, item* out) {
  const int64_t pairs = (columns + 1) / 2;
  for (int64_t r = 0; r < rows; ++r, x += ld, out += pairs) {
    for (int64_t j = 0; j < columns / 2; ++j) out[j] = half(x[2 * j]) | half(x[2 * j + 1]) << 16;
    if (columns % 2) out[pairs - 1] = half(x[columns - 1]);
  }
}
#endif

}  // namespace

// gemm by columns, as BLAS has it, of what the loops ask for: the first operand as it is, factors 1, and 1 or 0 for
// what is there. By rows: out (n, m) [+]= b a, with b transposed or not.
#ifndef HALF
extern "C" void gemm(const char*, const char* transposed, const int* m, const int* n, const int* k, const real*,
                     const real* a, const int* lda, const real* b, const int* ldb, const real* beta, real* out,
                     const int* ldo) {
  (*transposed == 'T' ? product<true> : product<false>)(*n, *m, *k, b, *ldb, a, *lda, out, *ldo, *beta != 0);
}
#else
// In bfloat16; a is in pairs of rows already where b is not transposed: matrices of parameters, the same in all steps.
extern "C" void gemm(const char*, const char* transposed, const int* m, const int* n, const int* k, const real*,
                     const void* a, const int* lda, const real* b, const int* ldb, const real* beta, real* out,
                     const int* ldo) {
  thread_local std::vector<item> left, right;
  const int64_t pairs = (*k + 1) / 2;
  left.resize(pairs * *n);
  if (*transposed == 'T') {
    right.resize(pairs * *m);
    paired(b, *ldb, *k, *n, left.data());
    paired((const real*)a, *lda, *k, *m, right.data());
    product<true>(*n, *m, pairs, left.data(), *n, right.data(), *m, out, *ldo, *beta != 0);
  } else {
    neighbours(b, *ldb, *n, *k, left.data());
    product<false>(*n, *m, pairs, left.data(), pairs, (const item*)a, *lda, out, *ldo, *beta != 0);
  }
}
#endif
"""


def gemm(dtype: torch.dtype, half: bool = False) -> int:
    """The address of the products to take for a type, the library's or our own; `half` are those of `halved` matrices.

    Raises:
        Refused: there are none.
    """
    if half or own():
        return _own("float" if dtype == torch.float32 else "double", half)
    return build.blas()["sgemm_" if dtype == torch.float32 else "dgemm_"]


def own() -> bool:
    """Whether our own products are taken: where asked for, or where the library's leave vectors unused."""
    asked = os.environ.get(PRODUCTS, "")
    if asked not in ("", "own", "library"):
        raise Refused(f"{PRODUCTS} is {asked!r}, expected 'own' or 'library'")
    return asked == "own" if asked else _wide_and_unused()


def has_half() -> bool:
    """Whether there are products of bfloat16, which take half the time of those of float32."""
    return own() and "avx512_bf16" in build.processor()


def halved(matrix: Tensor) -> Tensor:
    """A matrix `(rows, columns)` in bfloat16, its rows in pairs: `(rows / 2, columns, 2)`."""
    rows, columns = matrix.shape
    padded = functional.pad(matrix, (0, 0, 0, rows % 2)).bfloat16()
    return padded.view(-1, 2, columns).transpose(1, 2).contiguous()


@functools.lru_cache(maxsize=1)
def _wide_and_unused() -> bool:
    features = build.processor()
    return "avx512f" in features and "GenuineIntel" not in features


def compile_ahead(dtype: torch.dtype, half: bool = False) -> None:
    """Have our own products compiled meanwhile, if they will be asked for."""

    def make() -> None:
        # Whoever asks for them is told why there are none.
        with contextlib.suppress(Refused):
            gemm(dtype, half)

    threading.Thread(target=make, daemon=True).start()


def _own(kind: str, half: bool = False) -> int:
    with _lock:
        if (kind, half) not in _made:
            features = build.processor()
            width = 64 if "avx512f" in features else 32 if "avx2" in features else 16
            head = f"typedef {kind} real;\n#define BYTES {width}\n" + ("#define HALF\n" if half else "")
            library: Any = build.library(head + SOURCE, "gemm")
            _made[kind, half] = int(ctypes.cast(library.gemm, ctypes.c_void_p).value or 0)
        return _made[kind, half]


_made: dict[tuple[str, bool], int] = {}
_lock = threading.Lock()
