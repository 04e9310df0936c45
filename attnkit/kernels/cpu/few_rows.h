// The same online softmax for tiles of few rows (decodes of few heads a key head), where lanes full of rows would run empty:
// here a vector lies along a key's elements, then along the keys, then along a value's elements.
//
// Included by attention.cpp after what both share. float32 arithmetic only.
#pragma once

namespace {

constexpr int kFewRows = 4;
constexpr float kIota[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// Lane-wise sums of four vectors, side by side.
INLINE vf<4> sums_of_four(vf<4> a, vf<4> b, vf<4> c, vf<4> d) {
  vf<4> ab = __builtin_shufflevector(a, b, 0, 4, 1, 5) + __builtin_shufflevector(a, b, 2, 6, 3, 7);
  vf<4> cd = __builtin_shufflevector(c, d, 0, 4, 1, 5) + __builtin_shufflevector(c, d, 2, 6, 3, 7);
  return __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
}

INLINE vf<4> halved(vf<4> x) { return x; }
INLINE vf<4> halved(vf<8> x) {
  return __builtin_shufflevector(x, x, 0, 1, 2, 3) + __builtin_shufflevector(x, x, 4, 5, 6, 7);
}

template <int W>
INLINE float total(vf<W> x) {
  vf<4> y = halved(x);
  return (y[0] + y[2]) + (y[1] + y[3]);
}

template <int W>
INLINE float largest(const float* s, int n) {
  vf<W> top = splat<W>(kNegInf);
  for (int j = 0; j < n; j += W) top = maximum<W>(top, load<W>(s + j));
  float found = top[0];
  for (int i = 1; i < W; ++i) found = top[i] > found ? top[i] : found;
  return found;
}

// s[row][key] of R rows and K keys (a multiple of four), K / 4 * R chains of vectors.
template <int W, int R, int K>
INLINE void few_scores(const float* q, int dim, const float* const* k, float* s) {
  vf<W> acc[R][K] = {};
  const int whole = dim / W * W;
  for (int d = 0; d < whole; d += W) {
    vf<W> a[R];
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) a[r] = load<W>(q + r * dim + d);
#pragma GCC unroll 8
    for (int j = 0; j < K; ++j) {
      vf<W> b = load<W>(k[j] + d);
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) acc[r][j] += a[r] * b;
    }
  }
#pragma GCC unroll 2
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int j = 0; j < K; j += 4) {
      vf<4> found = sums_of_four(halved(acc[r][j]), halved(acc[r][j + 1]), halved(acc[r][j + 2]), halved(acc[r][j + 3]));
      for (int d = whole; d < dim; ++d) {
        float x = q[r * dim + d];
        found += vf<4>{k[j][d], k[j + 1][d], k[j + 2][d], k[j + 3][d]} * x;
      }
      store<4>(s + r * kKeys + j, found);
    }
}

// o[row][dv] = o[row][dv] * alpha[row] + sum over keys of p[row][key] * v_key[dv], for R rows and C vectors of columns.
template <int W, int R, int C>
INLINE void few_values(const float* p, const float* const* v, int dv, int keys, const float* alpha, float* o, int dim_v) {
  vf<W> acc[R][C] = {};
  for (int j = 0; j < keys; ++j) {
    const float* value = v[j] + dv;
#pragma GCC unroll 8
    for (int i = 0; i < C; ++i) {
      vf<W> b = load<W>(value + i * W);
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) acc[r][i] += b * p[r * kKeys + j];
    }
  }
  for (int r = 0; r < R; ++r)
    for (int i = 0; i < C; ++i) {
      float* to = o + r * dim_v + dv + i * W;
      store<W>(to, load<W>(to) * alpha[r] + acc[r][i]);
    }
}

template <int W, int R>
void few_rows_of_values(const float* p, const float* const* v, int keys, const float* alpha, float* o, int dim_v) {
  constexpr int C = 8 / R;
  int dv = 0;
  for (; dv + C * W <= dim_v; dv += C * W) few_values<W, R, C>(p, v, dv, keys, alpha, o, dim_v);
  for (; dv + W <= dim_v; dv += W) few_values<W, R, 1>(p, v, dv, keys, alpha, o, dim_v);
  for (; dv < dim_v; ++dv)
    for (int r = 0; r < R; ++r) {
      float sum = 0.0f;
      for (int j = 0; j < keys; ++j) sum += p[r * kKeys + j] * v[j][dv];
      o[r * dim_v + dv] = o[r * dim_v + dv] * alpha[r] + sum;
    }
}

// Softcap, ALiBi and mask of one row, in place; with the first two (or an odd scale) the result is in units of log 2.
template <int W>
void few_shape(const View& w, int row, int j0, int n, bool masked, float* s) {
  const Call& c = w.c;
  const float far = 3e9f;
  const float left = c.left < 0 ? far : static_cast<float>(c.left), right = c.right < 0 ? far : static_cast<float>(c.right);
  const float cap = c.softcap, inner = c.scale / (cap > 0 ? cap : 1.0f);
  const float slope = c.alibi ? c.alibi[w.head(row) * c.alibi_head] * kLog2e : 0.0f;
  for (int j = 0; j < n; j += W) {
    vf<W> x = load<W>(s + j);
    vf<W> distance = load<W>(kIota) + static_cast<float>(j0 + j - w.position(row));
    if (w.shaped) x = cap > 0 ? tanh_<W>(x * inner) * (cap * kLog2e) : x * (c.scale * kLog2e);
    if (c.alibi) x += distance * slope;
    if (masked) {
      vf<W> hidden = splat<W>(kNegInf);
      x = distance > right ? hidden : x;
      x = -distance > left ? hidden : x;
    }
    store<W>(s + j, x);
  }
}

// One step of the online softmax of one row; `n` counts whole vectors, what is past the last key is minus infinity.
template <int W>
void few_soften(int row, int n, float factor, float* s, Scratch& t) {
  const float before = t.m[row], top = largest<W>(s, n), m = top > before ? top : before;
  const float safe = m == kNegInf ? 0.0f : m;
  vf<W> sum = {};
  for (int j = 0; j < n; j += W) {
    vf<W> p = exp2_<W>((load<W>(s + j) - safe) * factor);
    store<W>(s + j, p);
    sum += p;
  }
  const float alpha = exp2_<W>(splat<W>((before - safe) * factor))[0];
  t.m[row] = m;
  t.l[row] = t.l[row] * alpha + total<W>(sum);
  t.alpha[row] = alpha;
}

// A tile of at most kFewRows rows. Leaves sums as [dv][row] in t.s, maxima in t.m, denominators in t.l.
template <int W>
void attend_few(const View& w, Scratch& t, bool direct) {
  const Call& c = w.c;
  const Item& it = w.it;
  const int rows = it.rows, dim = c.dim, dim_v = c.dim_v;
  for (int r = 0; r < rows; ++r) {
    const char* from = static_cast<const char*>(c.query) + (w.token(r) * c.q_token + w.head(r) * c.q_head) * element_size(c.dtype);
    widen(from, c.dtype, dim, nullptr, t.q + r * dim);
    t.m[r] = kNegInf;
    t.l[r] = 0.0f;
  }
  memset(t.o, 0, sizeof(float) * rows * dim_v);
  const int first = w.position(0), last = w.position(rows - 1);
  for (int j0 = it.key_lo; j0 < it.key_hi; j0 += kKeys) {
    const int n = it.key_hi - j0 < kKeys ? it.key_hi - j0 : kKeys, padded = (n + 7) / 8 * 8;
    take_keys<Fma>(w, j0, n, direct, t);
    for (int j = n; j < padded; ++j) t.kp[j] = t.kp[n - 1];
    int r = 0;
    for (int j = 0; j < padded; j += 8) {  // all rows while the keys are near
      for (r = 0; r + 2 <= rows; r += 2)
        for (int i = j; i < j + 8; i += 4) few_scores<W, 2, 4>(t.q + r * dim, dim, t.kp + i, t.s + r * kKeys + i);
      if (r < rows) few_scores<W, 1, 8>(t.q + r * dim, dim, t.kp + j, t.s + r * kKeys + j);
    }
    const bool masked = (c.right >= 0 && j0 + n - 1 - first > c.right) || (c.left >= 0 && last - j0 > c.left);
    for (r = 0; r < rows; ++r) {
      float* s = t.s + r * kKeys;
      if (masked || w.shaped) few_shape<W>(w, r, j0, padded, masked, s);
      for (int j = n; j < padded; ++j) s[j] = kNegInf;
      few_soften<W>(r, padded, w.factor, s, t);
    }
    for (r = 0; r + 2 <= rows; r += 2)
      few_rows_of_values<W, 2>(t.s + r * kKeys, t.vp, n, t.alpha + r, t.o + r * dim_v, dim_v);
    if (r < rows) few_rows_of_values<W, 1>(t.s + r * kKeys, t.vp, n, t.alpha + r, t.o + r * dim_v, dim_v);
  }
  for (int d = 0; d < dim_v; ++d)
    for (int r = 0; r < rows; ++r) t.s[d * rows + r] = t.o[r * dim_v + d];
}

}  // namespace
