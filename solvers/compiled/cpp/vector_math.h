// Elementary functions that a compiler can vectorise: no branches, no tables, no library calls. Each is accurate to a
// few units in the last place for all arguments; NaN stays NaN, and infinities go where they should.
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace {

// Denormal numbers are zero in this thread while this lives, operands and results, if that is asked for. Then the mode
// is what it was before.
class Flushed {
#if defined(__x86_64__)
  using Mode = unsigned;
  static constexpr Mode FLUSH = 0x8040;
  static Mode get() { return _mm_getcsr(); }
  static void set(Mode mode) { _mm_setcsr(mode); }
#elif defined(__aarch64__)
  using Mode = uint64_t;
  static constexpr Mode FLUSH = Mode(1) << 24;
  static Mode get() {
    Mode mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode)::"memory");
    return mode;
  }
  static void set(Mode mode) { __asm__ volatile("msr fpcr, %0" ::"r"(mode) : "memory"); }
#else
  using Mode = int;
  static constexpr Mode FLUSH = 0;
  static Mode get() { return 0; }
  static void set(Mode) {}
#endif
  const Mode before;

 public:
  explicit Flushed(bool wanted) : before(get()) {
    if (wanted) set(before | FLUSH);
  }
  ~Flushed() { set(before); }
};

template <class To, class From> inline To bits(From x) {
  To y;
  static_assert(sizeof(x) == sizeof(y), "same size");
  std::memcpy(&y, &x, sizeof(y));
  return y;
}

template <class R> struct Format;
template <> struct Format<float> {
  using Integer = int32_t;
  static constexpr int mantissa = 23, bias = 127;
  static constexpr float round = 12582912.f, log2e = 1.44269504f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  static constexpr float largest = 89.f, smallest = -104.f, flat = 20.f;
};
template <> struct Format<double> {
  using Integer = int64_t;
  static constexpr int mantissa = 52, bias = 1023;
  static constexpr double round = 6755399441055744.0, log2e = 1.4426950408889634, ln2_high = 0.693147180369123816490,
                          ln2_low = 1.90821492927058770002e-10;
  static constexpr double largest = 710.0, smallest = -746.0, flat = 40.0;
};

// exp(r) - 1 for |r| <= ln(2) / 2.
inline float expm1_near(float r) {
  float p = 1.f / 5040;
  p = p * r + 1.f / 720;
  p = p * r + 1.f / 120;
  p = p * r + 1.f / 24;
  p = p * r + 1.f / 6;
  p = p * r + 0.5f;
  return r + r * r * p;
}
inline double expm1_near(double r) {
  double p = 1.0 / 6227020800;
  p = p * r + 1.0 / 479001600;
  p = p * r + 1.0 / 39916800;
  p = p * r + 1.0 / 3628800;
  p = p * r + 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  return r + r * r * p;
}

// 2^n for n within the exponents of normal numbers.
template <class R> inline R power_of_two(typename Format<R>::Integer n) {
  return bits<R>((n + Format<R>::bias) << Format<R>::mantissa);
}

// x = n ln(2) + r.
template <class R> struct Reduced {
  typename Format<R>::Integer n;
  R r;
};
template <class R> inline Reduced<R> reduced(R x) {
  using F = Format<R>;
  const R shifted = x * F::log2e + F::round, whole = shifted - F::round;
  const auto n = bits<typename F::Integer>(shifted) - bits<typename F::Integer>(F::round);
  return {n, (x - whole * F::ln2_high) - whole * F::ln2_low};
}

template <class R> inline R vexp(R x) {
  using F = Format<R>;
  R y = x > F::largest ? F::largest : x;
  y = y < F::smallest ? F::smallest : y;
  const Reduced<R> a = reduced(y);
  // In two factors, so that overflow and gradual underflow come out of the multiplication.
  const auto half = a.n >> 1;
  return (R(1) + expm1_near(a.r)) * power_of_two<R>(half) * power_of_two<R>(a.n - half);
}

template <class R> inline R vexpm1(R x) {
  using F = Format<R>;
  R y = x > F::largest ? F::largest : x;
  y = y < -F::flat ? -F::flat : y;
  const Reduced<R> a = reduced(y);
  const auto half = a.n >> 1;
  const R low = power_of_two<R>(half), high = power_of_two<R>(a.n - half);
  const R z = (expm1_near(a.r) * low + (low - R(1) / high)) * high;
  return x == R(0) ? x : z;  // keeps the sign of a zero
}

// tanh(x) = (exp(2x) - 1) / (exp(2x) + 1).
template <class R> inline R vtanh(R x) {
  const R size = std::fabs(x), twice = size + size;
  const Reduced<R> a = reduced(twice > Format<R>::flat + Format<R>::flat ? Format<R>::flat + Format<R>::flat : twice);
  const R scale = power_of_two<R>(a.n), e = expm1_near(a.r) * scale + (scale - R(1));
  return std::copysign(e / (e + R(2)), x);
}

// exp(x) / (exp(x) + 1) where x < 0: exp(-x) would overflow before the result is zero.
template <class R> inline R vsigmoid(R x) {
  const R e = vexp(-std::fabs(x));
  return (x < R(0) ? e : R(1)) / (R(1) + e);
}

// log of a positive normal number, by atanh: log(m) = 2 atanh((m - 1) / (m + 1)) for m around 1.
template <class R> inline R log_normal(R x) {
  using F = Format<R>;
  using I = typename F::Integer;
  const I one = bits<I>(R(1)), pattern = bits<I>(x), offset = bits<I>(R(0.70710678118654752));
  const I n = (pattern - offset) >> F::mantissa;
  const R m = bits<R>(pattern - (n << F::mantissa)), f = m - R(1), s = f / (R(2) + f), z = s * s;
  (void)one;
  R p;
  if (sizeof(R) == 4) {
    p = R(2.0 / 9);
    p = p * z + R(2.0 / 7);
    p = p * z + R(2.0 / 5);
    p = p * z + R(2.0 / 3);
  } else {
    p = R(2.0 / 21);
    for (int k = 19; k >= 3; k -= 2) p = p * z + R(2.0) / R(k);
  }
  // f - s (f - z p) as in f - f^2 / 2 + ..: the leading term is exact.
  const R whole = R(n), h = f * f * R(0.5);
  return whole * F::ln2_high - ((h - (s * (h + z * p) + whole * F::ln2_low)) - f);
}
template <class R> inline R vlog(R x) {
  using F = Format<R>;
  const R tiny = sizeof(R) == 4 ? R(1.17549435e-38) : R(2.2250738585072014e-308);
  const R scale = sizeof(R) == 4 ? R(16777216.) : R(18014398509481984.);
  const bool small = x < tiny;
  const R y = log_normal(small ? x * scale : x) - (small ? R(sizeof(R) == 4 ? 24 : 54) * R(0.6931471805599453) : R(0));
  const R special = x == R(0) ? -R(INFINITY) : (x < R(0) ? R(NAN) : x);
  return (x > R(0) && x < R(INFINITY)) ? y : special;
}
template <class R> inline R vlog1p(R x) {
  const R u = R(1) + x, d = u - R(1);
  const R y = vlog(u) * (x / (d == R(0) ? R(1) : d));
  return d == R(0) ? x : (u == R(INFINITY) ? u : y);
}
template <class R> inline R vsign(R x) { return x > R(0) ? R(1) : (x < R(0) ? R(-1) : x); }
template <class R> inline R vmax(R a, R b) { return (a > b || a != a) ? a : b; }
template <class R> inline R vmin(R a, R b) { return (a < b || a != a) ? a : b; }

// Memory that lives as long as one call.
struct Scratch {
  std::vector<void*> parts;
  template <class R> R* take(int64_t n) {
    const size_t bytes = ((n > 0 ? n : 1) * sizeof(R) + 127) / 64 * 64;
    void* p = std::aligned_alloc(64, bytes);
    std::memset(p, 0, bytes);
    parts.push_back(p);
    return static_cast<R*>(p);
  }
  ~Scratch() {
    for (void* p : parts) std::free(p);
  }
};

}  // namespace

// Several parts of a batch at once, on the threads of the OpenMP library that torch has running: other threads would
// compete with those, which wait for work in a busy loop.
typedef void (*Part)(const int64_t*, void**);
struct Job {
  Part part;
  const int64_t* const* integers;
  void** const* pointers;
  int (*alone)(int);
  int64_t parts;
  std::atomic<int64_t> next;
};
inline void work(void* data) {
  Job* job = static_cast<Job*>(data);
  // A product inside must not start threads of its own.
  const int before = job->alone(1);
  for (int64_t i = job->next++; i < job->parts; i = job->next++) job->part(job->integers[i], job->pointers[i]);
  job->alone(before);
}
extern "C" void launch(void* parallel, void* alone, Part part, int64_t parts, const int64_t* const* integers,
                       void** const* pointers) {
  Job job{part, integers, pointers, (int (*)(int))alone, parts, {0}};
  ((void (*)(void (*)(void*), void*, unsigned, unsigned))parallel)(work, &job, (unsigned)parts, 0);
}
