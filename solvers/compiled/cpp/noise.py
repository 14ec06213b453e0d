"""Brownian increments in C++: the numbers of `solvers.methods.increments`, up to rounding, on the threads of torch."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from solvers.compiled.cpp import compiler
from solvers.compiled.step.refused import Refused
from solvers.methods.increments import Plan

#: Normals that are worth a thread of their own.
SHARE = 20_000

SOURCE = """
namespace {

inline uint64_t mixed(uint64_t z) {
  z += 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

// Of 32 bits a number between 0 and 1: (bits + 1/2) / 2^32.
inline double fraction(uint64_t low) {
  return (bits<double>(low | 0x4330000000000000u) - 4503599627370496.0 + 0.5) * 2.3283064365386963e-10;
}

// log of a number between 0 and 1, as `log_normal` of it, without what AVX2 has no vectors for: a shift that keeps the
// sign, and a conversion of 64 bits.
inline double log_fraction(double x) {
  const uint64_t pattern = bits<uint64_t>(x), bias = uint64_t(1023) << 52;
  const uint64_t n = (pattern - 0x3fe6a09e667f3bcdu + bias) >> 52;
  const double whole = bits<double>(n | 0x4330000000000000u) - 4503599627371519.0;
  const double f = bits<double>(pattern + bias - (n << 52)) - 1.0, s = f / (2.0 + f), z = s * s;
  double p = 2.0 / 21;
  p = p * z + 2.0 / 19;
  p = p * z + 2.0 / 17;
  p = p * z + 2.0 / 15;
  p = p * z + 2.0 / 13;
  p = p * z + 2.0 / 11;
  p = p * z + 2.0 / 9;
  p = p * z + 2.0 / 7;
  p = p * z + 2.0 / 5;
  p = p * z + 2.0 / 3;
  const double h = f * f * 0.5;
  return whole * Format<double>::ln2_high - ((h - (s * (h + z * p) + whole * Format<double>::ln2_low)) - f);
}

// Normals of one row, two from each 64 bits (Box and Muller), times a factor.
inline void normals(uint64_t piece, uint64_t row, int64_t pairs, const uint64_t* pair, double factor, double* out) {
  const uint64_t key = mixed(row ^ piece);
#pragma omp simd
  for (int64_t p = 0; p < pairs; ++p) {
    const uint64_t drawn = mixed(key + pair[p]);
    const double radius = factor * std::sqrt(-2.0 * log_fraction(fraction(drawn >> 32)));
    // The angle in quarters of a turn, and what it is past the nearest one.
    const double turn = fraction(drawn & 0xffffffffu), shifted = 4.0 * turn + 6755399441055744.0;
    const uint64_t quarter = bits<uint64_t>(shifted);
    const double x = 6.283185307179586 * (turn - 0.25 * (shifted - 6755399441055744.0)), z = x * x;
    double s = -1.0 / 1307674368000, c = -1.0 / 87178291200;
    s = s * z + 1.0 / 6227020800;
    s = s * z - 1.0 / 39916800;
    s = s * z + 1.0 / 362880;
    s = s * z - 1.0 / 5040;
    s = s * z + 1.0 / 120;
    s = s * z - 1.0 / 6;
    s = x + x * z * s;
    c = c * z + 1.0 / 479001600;
    c = c * z - 1.0 / 3628800;
    c = c * z + 1.0 / 40320;
    c = c * z - 1.0 / 720;
    c = c * z + 1.0 / 24;
    c = c * z - 0.5;
    c = 1.0 + z * c;
    const double a = (quarter & 1) ? s : c, b = (quarter & 1) ? c : s;
    out[2 * p] = radius * (((quarter + 1) & 2) ? -a : a);
    out[2 * p + 1] = radius * ((quarter & 2) ? -b : b);
  }
}

// Of the pieces of one level: W at their start, the integral up to there, the increment, and its mean less half of it.
struct Pieces {
  double *before, *under, *w, *h;
};

template <class Out> void fill(const int64_t* n, void** pointers) {
  const int64_t rows = n[0], columns = n[1], points = n[2], levels = n[3], most = n[4], first = n[6], last = n[7];
  const bool area = n[5];
  const int64_t* keys = (int64_t*)pointers[0];
  // Of each level: how many pieces, how many ends, whether there is more below.
  const int64_t* counts = (int64_t*)pointers[1];
  const int64_t *indices = (int64_t*)pointers[2], *parents = (int64_t*)pointers[3];
  const int64_t *places = (int64_t*)pointers[4], *numbers = (int64_t*)pointers[5];
  const double *fractions = (double*)pointers[6], *at = (double*)pointers[7];
  const int64_t pairs = (columns + 1) / 2, C = 2 * pairs;
  Scratch scratch;
  uint64_t* pair = scratch.take<uint64_t>(pairs);
  for (int64_t p = 0; p < pairs; ++p) pair[p] = mixed(p + (uint64_t(1) << 62));
  double *one = scratch.take<double>(C), *two = scratch.take<double>(C);
  double *values = scratch.take<double>(points * C), *integrals = scratch.take<double>(area ? points * C : 0);
  uint64_t* owns[2] = {scratch.take<uint64_t>(most), scratch.take<uint64_t>(most)};
  Pieces turns[2];
  for (Pieces& turn : turns)
    for (double** part : {&turn.before, &turn.under, &turn.w, &turn.h}) *part = scratch.take<double>(most * C);
  for (int64_t place = first; place < last; ++place) {
    const int64_t path = place / rows, r = place % rows;
    const uint64_t row = mixed(r), key = mixed(keys[path]);
    double width = 1;
    int64_t seen = 0, ended = 0;
    for (int64_t level = 0; level < levels; ++level) {
      const int64_t count = counts[3 * level], ends = counts[3 * level + 1];
      const bool deeper = counts[3 * level + 2] || area;
      const Pieces now = turns[level % 2], above = turns[1 - level % 2];
      uint64_t *own = owns[level % 2], *drawn = owns[1 - level % 2];
      const uint64_t root = mixed(key + level);
      for (int64_t k = 0; k < count; ++k) own[k] = mixed(root + indices[seen + k]);
      if (level == 0) {
        normals(mixed(own[0] + 2), row, pairs, pair, 1, now.w);
        if (deeper) normals(mixed(own[0] + 3), row, pairs, pair, 0.28867513459481287, now.h);
        std::memset(now.before, 0, C * sizeof(double));
        std::memset(now.under, 0, C * sizeof(double));
      }
      for (int64_t k = 0, known = -1; k < (level ? count : 0); ++k) {
        const int64_t parent = parents[seen + k];
        if (parent != known) {
          normals(mixed(drawn[parent]), row, pairs, pair, 1, one);
          if (deeper) normals(mixed(drawn[parent] + 1), row, pairs, pair, std::sqrt(width / 24), two);
          known = parent;
        }
        const double *w = above.w + parent * C, *h = above.h + parent * C, *b = above.before + parent * C;
        double *new_w = now.w + k * C, *new_h = now.h + k * C, *new_b = now.before + k * C;
        const double root_width = std::sqrt(2 * width), sign = indices[seen + k] & 1 ? -1 : 1, right = sign < 0;
#pragma omp simd
        for (int64_t j = 0; j < C; ++j) {
          const double excess = 1.5 * h[j] + root_width / 4 * one[j];
          new_w[j] = w[j] / 2 + sign * excess;
          new_b[j] = b[j] + right * (w[j] / 2 + excess);
        }
        if (!deeper) continue;
        const double* u = above.under + parent * C;
        double* new_u = now.under + k * C;
#pragma omp simd
        for (int64_t j = 0; j < C; ++j) {
          const double both = h[j] / 4 - root_width / 8 * one[j];
          const double excess = 1.5 * h[j] + root_width / 4 * one[j];
          new_h[j] = both + sign * two[j];
          new_u[j] = u[j] + right * width * (b[j] + (w[j] / 2 + excess) / 2 + both + two[j]);
        }
      }
      for (int64_t k = 0; k < ends; ++k) {
        const int64_t from = places[ended + k] * C, to = numbers[ended + k] * C;
        for (int64_t j = 0; j < C; ++j) values[to + j] = now.before[from + j] + now.w[from + j];
        for (int64_t j = 0; j < (area ? C : 0); ++j)
          integrals[to + j] =
              now.under[from + j] + width * (now.before[from + j] + now.w[from + j] / 2 + now.h[from + j]);
      }
      seen += count;
      ended += ends;
      if (level + 1 < levels) width /= 2;
    }
    // Within the finest pieces.
    const Pieces now = turns[(levels - 1) % 2];
    for (int64_t k = 0; k < counts[3 * levels]; ++k) {
      const int64_t from = places[ended + k] * C, to = numbers[ended + k] * C;
      const double s = fractions[k];
      for (int64_t j = 0; j < C; ++j)
        values[to + j] = now.before[from + j] + s * now.w[from + j] + 6 * s * (1 - s) * now.h[from + j];
      for (int64_t j = 0; j < (area ? C : 0); ++j)
        integrals[to + j] = now.under[from + j] + width * (s * now.before[from + j] + s * s / 2 * now.w[from + j] +
                                                           s * s * (3 - 2 * s) * now.h[from + j]);
    }
    for (int64_t step = 0; step + 1 < points; ++step) {
      const double *a = values + step * C, *b = a + C, length = at[step + 1] - at[step];
      const double root = std::sqrt(length), *below = integrals + step * C;
      const int64_t to = ((path * (points - 1) + step) * rows + r) * columns;
      Out *out = (Out*)pointers[8] + to, *sum = (Out*)pointers[9] + to;
      for (int64_t j = 0; j < columns; ++j) out[j] = Out((b[j] - a[j]) / root);
      for (int64_t j = 0; j < (area ? columns : 0); ++j)
        sum[j] = Out((below[C + j] - below[j] - length * a[j]) / (length * root));
    }
  }
}

}  // namespace

extern "C" void fill_float(const int64_t* integers, void** pointers) { fill<float>(integers, pointers); }
extern "C" void fill_double(const int64_t* integers, void** pointers) { fill<double>(integers, pointers); }
"""


@functools.lru_cache(maxsize=1)
def _library() -> Any:
    """The compiled source, or None where there is no compiler."""
    try:
        header = Path(__file__).with_name("vector_math.h").read_text()
        return compiler.library(header + SOURCE), compiler.blas()
    except Refused:
        return None


def draw(
    keys: Sequence[int], chosen: Plan, rows: int, columns: int, area: bool, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor | None] | None:
    """As `increments.draw`; None where that has to do it."""
    found = _library() if device.type == "cpu" and dtype in (torch.float32, torch.float64) else None
    if found is None:
        return None
    library, blas = found
    steps = len(chosen.points) - 1
    # Inside a function transform a tensor would have no address.
    kind = np.float32 if dtype == torch.float32 else np.float64
    results = [np.empty((len(keys), steps, rows, columns), kind) for _ in range(1 + area)]
    arrays = [np.array(keys, np.uint64), *_arrays(chosen), *results]
    addresses = [array.ctypes.data for array in arrays] + [0]
    pointers = (ctypes.c_void_p * len(addresses))(*addresses)
    most = max(len(level.indices) for level in chosen.levels)
    total, drawn = len(keys) * rows, sum(len(level.indices) for level in chosen.levels)
    threads = max(1, min(torch.get_num_threads(), total * columns * drawn // SHARE, total))
    if not {"MKL_Set_Num_Threads_Local", "GOMP_parallel"} <= set(blas):
        threads = 1
    common = (rows, columns, steps + 1, len(chosen.levels), most, int(area))
    parts = [(ctypes.c_int64 * 8)(*common, total * i // threads, total * (i + 1) // threads) for i in range(threads)]
    function = library.fill_float if dtype == torch.float32 else library.fill_double
    if threads == 1:
        function(parts[0], pointers)
    else:
        integers = (ctypes.c_void_p * threads)(*map(ctypes.addressof, parts))
        given = (ctypes.c_void_p * threads)(*[ctypes.addressof(pointers)] * threads)
        parallel, alone = (ctypes.c_void_p(blas[name]) for name in ("GOMP_parallel", "MKL_Set_Num_Threads_Local"))
        library.launch(parallel, alone, function, ctypes.c_int64(threads), integers, given)
    made = [torch.from_numpy(result) for result in results]
    return made[0], made[1] if area else None


@functools.lru_cache(maxsize=64)
def _arrays(chosen: Plan) -> tuple[np.ndarray, ...]:
    """A plan as the C++ reads it."""
    places, numbers, fractions = chosen.inside
    counts = [x for level in chosen.levels for x in (len(level.indices), len(level.ends[0]), level.below)]

    def joined(*parts: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.concatenate(parts), np.int64)

    return (
        np.array([*counts, len(places)], np.int64),
        joined(*(level.indices for level in chosen.levels)),
        joined(*(level.parents for level in chosen.levels)),
        joined(*(level.ends[0] for level in chosen.levels), places),
        joined(*(level.ends[1] for level in chosen.levels), numbers),
        np.ascontiguousarray(fractions, np.float64),
        np.ascontiguousarray(chosen.points, np.float64),
    )
