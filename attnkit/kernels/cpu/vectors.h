// Vectors of W floats through the compiler's vector extensions, and the few functions that softmax needs.
//
// Included by attention.cpp, which is compiled once an instruction set: everything has internal linkage, so that no copy made
// for a newer processor can stand in for another.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__F16C__) || defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace {

#define INLINE static inline __attribute__((always_inline))

constexpr float kNegInf = -__builtin_inff();
constexpr float kLog2e = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

template <int W>
struct Vec {
  typedef float f __attribute__((vector_size(W * 4), aligned(4), may_alias));
  typedef int32_t i __attribute__((vector_size(W * 4), aligned(4), may_alias));
};

template <int W>
using vf = typename Vec<W>::f;
template <int W>
using vi = typename Vec<W>::i;

template <int W>
INLINE vf<W> load(const float* p) {
  return *reinterpret_cast<const vf<W>*>(p);
}
template <int W>
INLINE void store(float* p, vf<W> x) {
  *reinterpret_cast<vf<W>*>(p) = x;
}
template <int W>
INLINE vf<W> splat(float x) {
  return vf<W>{} + x;
}
template <int W>
INLINE vf<W> maximum(vf<W> a, vf<W> b) {
  return a > b ? a : b;
}

// 2^x, relative error 2e-9 before rounding (minimax polynomial of degree 6 on [-1/2, 1/2]); 0 below 2^-126.
template <int W>
INLINE vf<W> exp2_(vf<W> x) {
  x = maximum<W>(x, splat<W>(-127.0f));
  const vf<W> magic = splat<W>(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  vf<W> shifted = x + magic;
  vf<W> n = shifted - magic;
  vf<W> f = x - n;
  vf<W> p = splat<W>(0.0001534580560309f);
  p = p * f + 0.0013399931167827f;
  p = p * f + 0.0096184889809132f;
  p = p * f + 0.0555032877712513f;
  p = p * f + 0.2402264689041419f;
  p = p * f + 0.6931472057371679f;
  p = p * f + 1.0f;
  vi<W> bits = ((vi<W>)shifted - 0x4B400000 + 127) << 23;
  return p * (vf<W>)bits;
}

// tanh, relative error of a few ulp: an odd polynomial near 0 (Cephes), 1 - 2 / (e^2|x| + 1) elsewhere.
template <int W>
INLINE vf<W> tanh_(vf<W> x) {
  vf<W> z = x * x;
  vf<W> p = splat<W>(-5.70498872745e-3f);
  p = p * z + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  vf<W> small = p * z * x + x;
  vf<W> a = x < 0.0f ? -x : x;
  a = a > 20.0f ? splat<W>(20.0f) : a;
  vf<W> t = 1.0f - 2.0f / (exp2_<W>(a * (2.0f * kLog2e)) + 1.0f);
  t = x < 0.0f ? -t : t;
  return a < 0.625f ? small : t;
}

INLINE float from_bits(uint32_t b) {
  float x;
  memcpy(&x, &b, 4);
  return x;
}
INLINE uint32_t to_bits(float x) {
  uint32_t b;
  memcpy(&b, &x, 4);
  return b;
}

INLINE float half_to_float(uint16_t h) {
#ifdef __F16C__
  return _cvtsh_ss(h);
#else
  uint32_t sign = (h & 0x8000u) << 16, exponent = (h >> 10) & 31, fraction = h & 1023;
  if (exponent == 0) {
    float x = static_cast<float>(fraction) * 5.9604644775390625e-8f;  // 2^-24
    return from_bits(to_bits(x) | sign);
  }
  if (exponent == 31) return from_bits(sign | 0x7F800000u | (fraction << 13));
  return from_bits(sign | ((exponent + 112) << 23) | (fraction << 13));
#endif
}

INLINE uint16_t float_to_half(float x) {
#ifdef __F16C__
  return _cvtss_sh(x, 0);
#else
  uint32_t bits = to_bits(x), sign = (bits >> 16) & 0x8000u;
  bits &= 0x7FFFFFFFu;
  if (bits >= 0x7F800000u) return static_cast<uint16_t>(sign | 0x7C00u | (bits > 0x7F800000u ? 0x200u : 0u));
  if (bits >= 0x477FF000u) return static_cast<uint16_t>(sign | 0x7C00u);
  if (bits < 0x38800000u) {  // subnormal: let the adder round
    uint32_t rounded = to_bits(from_bits(bits) + 0.5f);
    return static_cast<uint16_t>(sign | (rounded - 0x3F000000u));
  }
  bits += 0xFFFu + ((bits >> 13) & 1);
  return static_cast<uint16_t>(sign | ((bits - 0x38000000u) >> 13));
#endif
}

INLINE uint16_t float_to_bfloat(float x) {
  uint32_t bits = to_bits(x);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1)) >> 16);
}

// The float8 formats of torch: e4m3fn has no infinity and NaN at 0x7F; e5m2 is the upper byte of a half.
INLINE float fp8_to_float(uint8_t b, bool e4m3) {
  if (!e4m3) return half_to_float(static_cast<uint16_t>(b << 8));
  uint32_t sign = (b & 0x80u) << 24, exponent = (b >> 3) & 15, fraction = b & 7;
  if (exponent == 15 && fraction == 7) return from_bits(sign | 0x7FC00000u);
  if (exponent == 0) {
    float x = static_cast<float>(fraction) * 0.001953125f;  // 2^-9
    return from_bits(to_bits(x) | sign);
  }
  return from_bits(sign | ((exponent + 120) << 23) | (fraction << 20));
}

}  // namespace
