// Attention of one tile of rows over its keys, on any instruction set: compiled once for each, see build.py.
//
//   S = scale q.k    S <- softcap tanh(S / softcap) + slope (k_pos - q_pos)    p = exp(S - m)    out = sum p v / sum p
//
// Rows (new tokens x the query heads of one key head) lie across the lanes of vectors, so the whole online softmax is
// lane-wise: no sum or maximum across lanes. Q is transposed once a tile; elements of K and V are broadcast straight from the
// paged cache, which is therefore read in place, whatever its strides. Sums of a key tile start at zero and are then added to
// the running output, so that long contexts do not add tiny terms to large ones one by one. A tile of few rows would leave
// most lanes empty: few_rows.h.
//
// Two dot operations: float32 fused multiply-add, and where the processor has it, bfloat16 pairs with float32 sums
// (vdpbf16ps). Other formats are widened to float32, a tile of keys at a time.
#include "abi.h"
#include "vectors.h"

#ifndef ATTNKIT_KERNEL
#error "ATTNKIT_KERNEL names the instruction set"
#endif
#define STRING_(x) #x
#define STRING(x) STRING_(x)

namespace {

using attnkit::Call;
using attnkit::Item;
using attnkit::kMaxDim;
using attnkit::kTileRows;

#if defined(__AVX512F__)
constexpr int kWidth = 16, kGroup = 4;
#elif defined(__AVX2__)
constexpr int kWidth = 8, kGroup = 2;
#else
constexpr int kWidth = 4, kGroup = 2;
#endif
// kWidth lanes a vector; kGroup vectors of rows share one broadcast element.
constexpr int kNarrow = kWidth == 16 ? 8 : kWidth;  // lanes where few rows are there: two narrow operations a cycle
constexpr int kKeys = 128;                          // keys a tile at most
constexpr int kRegisters = kWidth == 16 ? 32 : 16;  // vector registers
constexpr int kKeysAtOnce = 6;

// Columns of values that are summed at once for MV vectors of rows: the sums, the rows and one broadcast element fit into registers.
constexpr int values_at_once(int mv) { return kRegisters == 32 ? (mv == 1 ? 8 : 16 / mv) : (mv == 1 ? 8 : 6); }

struct Scratch {
  alignas(64) float q[kMaxDim * kTileRows];
  alignas(64) float o[kMaxDim * kTileRows];
  alignas(64) float s[kKeys * kTileRows];
  alignas(64) float p[kKeys * kTileRows / 2];  // bfloat16 pairs
  alignas(64) float k[kKeys * kMaxDim];        // widened keys
  alignas(64) float v[kKeys * kMaxDim];        // widened values, or pairs of bfloat16 values
  alignas(64) float m[kTileRows], l[kTileRows], alpha[kTileRows], slope[kTileRows];
  alignas(64) float q_pos[kTileRows];
  alignas(64) float row[kMaxDim];
  const float* kp[kKeys + kKeysAtOnce];
  const float* vp[kKeys];
  float fp8[256];
};

thread_local Scratch scratch;

// This thread's scratch. The empty assembly hides that the address is thread-local: the compiler would rather look it up again,
// by a call in the innermost loop, than keep it in a register.
INLINE Scratch& own_scratch() {
  Scratch* found = &scratch;
  asm volatile("" : "+r"(found));
  return *found;
}

// acc += a * b over one element (float32), or over a pair of bfloat16 elements that share a float's 32 bits.
struct Fma {
  static constexpr bool pairs = false;
  template <int W>
  INLINE vf<W> dot(vf<W> acc, vf<W> a, float b) {
    return acc + a * b;
  }
};

#ifdef __AVX512BF16__
struct Pairs {
  static constexpr bool pairs = true;
  template <int W>
  INLINE vf<W> dot(vf<W> acc, vf<W> a, float b) {
    if constexpr (W == 16)
      return (vf<W>)_mm512_dpbf16_ps((__m512)acc, (__m512bh)(__m512)a, (__m512bh)_mm512_set1_ps(b));
    else
      return (vf<W>)_mm256_dpbf16_ps((__m256)acc, (__m256bh)(__m256)a, (__m256bh)_mm256_set1_ps(b));
  }
};
#endif

// S[j][row] = sum over `steps` of q[step][row] * k_j[step], for N keys and MV vectors of rows.
template <class Dot, int W, int MV, int N>
INLINE void scores(const float* q, int ld, const float* const* k, int steps, float* s) {
  vf<W> acc[N][MV] = {};
  const float* key[N];
  for (int j = 0; j < N; ++j) key[j] = k[j];
  for (int d = 0; d < steps; ++d) {
    vf<W> a[MV];
#pragma GCC unroll 4
    for (int i = 0; i < MV; ++i) a[i] = load<W>(q + d * ld + i * W);
#pragma GCC unroll 8
    for (int j = 0; j < N; ++j)
#pragma GCC unroll 4
      for (int i = 0; i < MV; ++i) acc[j][i] = Dot::template dot<W>(acc[j][i], a[i], key[j][d]);
  }
  for (int j = 0; j < N; ++j)
    for (int i = 0; i < MV; ++i) store<W>(s + j * ld + i * W, acc[j][i]);
}

// O[dv][row] = O[dv][row] * alpha[row] + sum over `steps` keys (or pairs) of p[step][row] * v_step[dv], for N columns.
template <class Dot, int W, int MV, int N>
INLINE void values(const float* p, int ld, const float* const* v, int dv, int steps, const float* alpha, float* o) {
  vf<W> acc[N][MV] = {};
  for (int j = 0; j < steps; ++j) {
    vf<W> a[MV];
    const float* value = v[j] + dv;
#pragma GCC unroll 4
    for (int i = 0; i < MV; ++i) a[i] = load<W>(p + j * ld + i * W);
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n)
#pragma GCC unroll 4
      for (int i = 0; i < MV; ++i) acc[n][i] = Dot::template dot<W>(acc[n][i], a[i], value[n]);
  }
  for (int i = 0; i < MV; ++i) {
    vf<W> r = load<W>(alpha + i * W);
    for (int n = 0; n < N; ++n) {
      float* to = o + (dv + n) * ld + i * W;
      store<W>(to, load<W>(to) * r + acc[n][i]);
    }
  }
}

template <class Dot, int W, int MV>
void all_scores(const Scratch& t, int first, int ld, int keys, int steps, float* s) {
  for (int j = 0; j < keys; j += kKeysAtOnce)
    scores<Dot, W, MV, kKeysAtOnce>(t.q + first, ld, t.kp + j, steps, s + j * ld + first);
}

template <class Dot, int W, int MV>
void all_values(Scratch& t, const float* p, int first, int ld, int steps, int dim_v) {
  constexpr int N = values_at_once(MV);
  int dv = 0;
  for (; dv + N <= dim_v; dv += N)
    values<Dot, W, MV, N>(p + first, ld, t.vp, dv, steps, t.alpha + first, t.o + first);
  for (; dv + 2 <= dim_v; dv += 2) values<Dot, W, MV, 2>(p + first, ld, t.vp, dv, steps, t.alpha + first, t.o + first);
  for (; dv < dim_v; ++dv) values<Dot, W, MV, 1>(p + first, ld, t.vp, dv, steps, t.alpha + first, t.o + first);
}

// The vectors of rows, kGroup at a time.
template <class Dot, int W>
void score_rows(const Scratch& t, int ld, int keys, int steps, float* s) {
  int v = 0, vectors = ld / W;
  for (; v + kGroup <= vectors; v += kGroup) all_scores<Dot, W, kGroup>(t, v * W, ld, keys, steps, s);
  switch (vectors - v) {
    case 3: all_scores<Dot, W, kGroup == 4 ? 3 : 1>(t, v * W, ld, keys, steps, s); break;
    case 2: all_scores<Dot, W, 2>(t, v * W, ld, keys, steps, s); break;
    case 1: all_scores<Dot, W, 1>(t, v * W, ld, keys, steps, s); break;
    default: break;
  }
}

template <class Dot, int W>
void value_rows(Scratch& t, const float* p, int ld, int steps, int dim_v) {
  int v = 0, vectors = ld / W;
  for (; v + kGroup <= vectors; v += kGroup) all_values<Dot, W, kGroup>(t, p, v * W, ld, steps, dim_v);
  switch (vectors - v) {
    case 3: all_values<Dot, W, kGroup == 4 ? 3 : 1>(t, p, v * W, ld, steps, dim_v); break;
    case 2: all_values<Dot, W, 2>(t, p, v * W, ld, steps, dim_v); break;
    case 1: all_values<Dot, W, 1>(t, p, v * W, ld, steps, dim_v); break;
    default: break;
  }
}

INLINE int element_size(int32_t dtype) {
  return dtype == attnkit::kFloat32 ? 4 : dtype == attnkit::kBfloat16 || dtype == attnkit::kFloat16 ? 2 : 1;
}

INLINE const char* row_at(const Call& c, const void* base, int size, const Item& it, int pos, int64_t block, int64_t slot,
                          int64_t head) {
  int64_t offset = it.kv_head * head;
  if (c.block_table) {
    int32_t number = c.block_table[it.seq * c.table_seq + pos / c.block_size * c.table_block];
    offset += number * block + (pos % c.block_size) * slot;
  } else {
    offset += (attnkit::key_start(c, it.seq) + pos) * slot;
  }
  return static_cast<const char*>(base) + offset * size;
}

// n elements as float32; fp8: the decoding table.
void widen(const void* from, int32_t dtype, int n, const float* fp8, float* to) {
  if (dtype == attnkit::kBfloat16) {
    const uint16_t* x = static_cast<const uint16_t*>(from);
    for (int i = 0; i < n; ++i) to[i] = from_bits(static_cast<uint32_t>(x[i]) << 16);
  } else if (dtype == attnkit::kFloat16) {
    const uint16_t* x = static_cast<const uint16_t*>(from);
    int i = 0;
#ifdef __AVX512F__
    for (; i + 16 <= n; i += 16)
      _mm512_storeu_ps(to + i, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i))));
#elif defined(__F16C__)
    for (; i + 8 <= n; i += 8)
      _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x + i))));
#endif
    for (; i < n; ++i) to[i] = half_to_float(x[i]);
  } else if (dtype == attnkit::kFloat32) {
    memcpy(to, from, n * sizeof(float));
  } else {
    const uint8_t* x = static_cast<const uint8_t*>(from);
    for (int i = 0; i < n; ++i) to[i] = fp8[x[i]];
  }
}

void narrow(const float* from, int32_t dtype, int n, void* to) {
  uint16_t* y = static_cast<uint16_t*>(to);
  if (dtype == attnkit::kFloat32) {
    memcpy(to, from, n * sizeof(float));
  } else if (dtype == attnkit::kBfloat16) {
    for (int i = 0; i < n; ++i) y[i] = float_to_bfloat(from[i]);
  } else {
    for (int i = 0; i < n; ++i) y[i] = float_to_half(from[i]);
  }
}

#ifdef __AVX512BF16__
// Rows a and b of bfloat16 as pairs: to[i] = (a[i], b[i]).
INLINE void interleave(const uint16_t* a, const uint16_t* b, int n, float* to) {
  uint32_t* out = reinterpret_cast<uint32_t*>(to);
  int i = 0;
  for (; i + 16 <= n; i += 16) {
    __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(a + i)));
    __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(b + i)));
    _mm512_storeu_si512(out + i, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
  }
  for (; i < n; ++i) out[i] = a[i] | static_cast<uint32_t>(b[i]) << 16;
}

// Two vectors of float32 as pairs of bfloat16, rounded to nearest even.
template <int W>
INLINE void round_pairs(const float* a, const float* b, float* to) {
  if constexpr (W == 16) {
    __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)load<16>(a)));
    __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)load<16>(b)));
    _mm512_storeu_si512(to, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
  } else {
    __m256i low = _mm256_cvtepu16_epi32((__m128i)_mm256_cvtneps_pbh((__m256)load<8>(a)));
    __m256i high = _mm256_cvtepu16_epi32((__m128i)_mm256_cvtneps_pbh((__m256)load<8>(b)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_or_si256(low, _mm256_slli_epi32(high, 16)));
  }
}
#endif

// What a call looks like for one item.
struct View {
  const Call& c;
  const Item& it;
  int group, query_first, query_len, length;
  bool shaped;   // scores go through shape_scores even where nothing is masked
  float factor;  // turns what soften() gets into units of log 2; the maxima are kept without it

  View(const Call& call, const Item& item) : c(call), it(item) {
    group = c.heads / c.kv_heads;
    query_first = attnkit::query_start(c, it.seq);
    query_len = attnkit::query_start(c, it.seq + 1) - query_first;
    length = attnkit::key_length(c, it.seq);
    shaped = c.softcap > 0 || c.alibi || !(c.scale > 0);
    factor = shaped ? 1.0f : c.scale * kLog2e;
  }
  int token(int r) const { return query_first + (it.row0 + r) / group; }
  int head(int r) const { return it.kv_head * group + (it.row0 + r) % group; }
  int position(int r) const { return length - query_len + (it.row0 + r) / group; }
};

// Q as [step][row] in float32, or as [step][row] pairs of bfloat16. Rows past the last are zero.
template <class Dot>
void take_queries(const View& w, int ld, Scratch& t) {
  const Call& c = w.c;
  int steps = Dot::pairs ? c.dim / 2 : c.dim, size = element_size(c.dtype);
  for (int r = 0; r < ld; ++r) {
    const float* row = t.row;
    if (r < w.it.rows) {
      const char* from = static_cast<const char*>(c.query) + (w.token(r) * c.q_token + w.head(r) * c.q_head) * size;
      if (Dot::pairs || c.dtype == attnkit::kFloat32)
        row = reinterpret_cast<const float*>(from);
      else
        widen(from, c.dtype, c.dim, nullptr, t.row);
    } else {
      for (int d = 0; d < steps; ++d) t.row[d] = 0.0f;
    }
    for (int d = 0; d < steps; ++d) t.q[d * ld + r] = row[d];
  }
}

// Pointers to keys and values [j0, j0 + n), widened or paired where they must be.
template <class Dot>
void take_keys(const View& w, int j0, int n, bool direct, Scratch& t) {
  const Call& c = w.c;
  int size = element_size(c.cache_dtype);
  for (int j = 0; j < n; ++j) {
    const char* k = row_at(c, c.key, size, w.it, j0 + j, c.k_block, c.k_slot, c.k_head);
    const char* v = row_at(c, c.value, size, w.it, j0 + j, c.v_block, c.v_slot, c.v_head);
    if (direct) {
      t.kp[j] = reinterpret_cast<const float*>(k);
      t.vp[j] = reinterpret_cast<const float*>(v);
    } else {
      widen(k, c.cache_dtype, c.dim, t.fp8, t.k + j * c.dim);
      widen(v, c.cache_dtype, c.dim_v, t.fp8, t.v + j * c.dim_v);
      t.kp[j] = t.k + j * c.dim;
      t.vp[j] = t.v + j * c.dim_v;
    }
  }
  for (int j = n; j < n + kKeysAtOnce - 1; ++j) t.kp[j] = t.kp[n - 1];  // computed, never used
#ifdef __AVX512BF16__
  if constexpr (Dot::pairs) {
    for (int j = 0; j < n; j += 2) {
      const uint16_t* a = reinterpret_cast<const uint16_t*>(t.vp[j]);
      const uint16_t* b = j + 1 < n ? reinterpret_cast<const uint16_t*>(t.vp[j + 1]) : a;
      float* to = t.v + j / 2 * c.dim_v;
      interleave(a, b, c.dim_v, to);
    }
    for (int j = 0; j < (n + 1) / 2; ++j) t.vp[j] = t.v + j * c.dim_v;
  }
#endif
}

// Softcap, ALiBi and mask, in place; with the first two (or an odd scale) the result is in units of log 2.
template <int W>
void shape_scores(const View& w, int ld, int j0, int n, bool masked, Scratch& t) {
  const Call& c = w.c;
  const float far = 3e9f;
  const float left = c.left < 0 ? far : static_cast<float>(c.left), right = c.right < 0 ? far : static_cast<float>(c.right);
  const float cap = c.softcap, inner = c.scale / (cap > 0 ? cap : 1.0f);
  for (int i = 0; i < ld; i += W) {
    vf<W> q_pos = load<W>(t.q_pos + i), slope = load<W>(t.slope + i) * kLog2e;
    for (int j = 0; j < n; ++j) {
      vf<W> s = load<W>(t.s + j * ld + i);
      vf<W> distance = static_cast<float>(j0 + j) - q_pos;
      if (w.shaped) s = cap > 0 ? tanh_<W>(s * inner) * (cap * kLog2e) : s * (c.scale * kLog2e);
      if (c.alibi) s += slope * distance;
      if (masked) {
        vf<W> hidden = splat<W>(kNegInf);
        s = distance > right ? hidden : s;
        s = -distance > left ? hidden : s;
      }
      store<W>(t.s + j * ld + i, s);
    }
  }
}

// One step of the online softmax: S becomes p, and m, l and alpha move on. The difference
// to the maximum is scaled, not the score: large scores then lose nothing.
template <class Dot, int W>
void soften(int ld, int n, float factor, Scratch& t) {
  for (int i = 0; i < ld; i += W) {
    vf<W> top = load<W>(t.s + i), second = top;
    int j = 1;
    for (; j + 1 < n; j += 2) {
      top = maximum<W>(top, load<W>(t.s + j * ld + i));
      second = maximum<W>(second, load<W>(t.s + (j + 1) * ld + i));
    }
    if (j < n) top = maximum<W>(top, load<W>(t.s + j * ld + i));
    vf<W> before = load<W>(t.m + i), m = maximum<W>(before, maximum<W>(top, second));
    vf<W> safe = m == kNegInf ? splat<W>(0.0f) : m;
    vf<W> alpha = exp2_<W>((before - safe) * factor);
    vf<W> sum = {}, other = {};
    for (j = 0; j + 1 < n; j += 2) {
      float* s = t.s + j * ld + i;
      vf<W> a = exp2_<W>((load<W>(s) - safe) * factor), b = exp2_<W>((load<W>(s + ld) - safe) * factor);
      store<W>(s, a);
      store<W>(s + ld, b);
      sum += a;
      other += b;
    }
    if (j < n) {
      vf<W> a = exp2_<W>((load<W>(t.s + j * ld + i) - safe) * factor);
      store<W>(t.s + j * ld + i, a);
      sum += a;
      if (Dot::pairs) store<W>(t.s + (j + 1) * ld + i, vf<W>{});
    }
    store<W>(t.m + i, m);
    store<W>(t.l + i, load<W>(t.l + i) * alpha + (sum + other));
    store<W>(t.alpha + i, alpha);
  }
}

// out and lse of a tile from its sums o [dv][ld], maxima m and denominators l.
void finish(const View& w, int ld, const float* o, const float* m, const float* l, float* row) {
  const Call& c = w.c;
  for (int r = 0; r < w.it.rows; ++r) {
    int token = w.token(r), head = w.head(r);
    float top = m[r] * w.factor, sum = l[r];
    float keep = 1.0f;
    if (c.sinks) {
      float sink = c.sinks[head * c.sinks_head] * kLog2e, both = top > sink ? top : sink;
      keep = __builtin_exp2f(top - both);
      sum = sum * keep + __builtin_exp2f(sink - both);
      top = both;
    }
    float factor = sum > 0.0f ? keep / sum : 0.0f;
    for (int d = 0; d < c.dim_v; ++d) row[d] = o[d * ld + r] * factor;
    narrow(row, c.dtype, c.dim_v,
           static_cast<char*>(c.out) + (token * c.o_token + head * c.o_head) * element_size(c.dtype));
    if (c.lse) c.lse[static_cast<int64_t>(token) * c.heads + head] = sum > 0.0f ? top * kLn2 + __builtin_logf(sum) : kNegInf;
  }
}

// What a tile leaves: its result, or where its keys are split its sums o [dv][ld], maxima and denominators for the merge.
void leave(const View& w, int ld, float* o, Scratch& t, float* partial) {
  const Call& c = w.c;
  const int rows = w.it.rows;
  if (c.v_scale != 1.0f)
    for (int i = 0; i < ld * c.dim_v; ++i) o[i] *= c.v_scale;
  if (!partial) return finish(w, ld, o, t.m, t.l, t.row);
  for (int d = 0; d < c.dim_v; ++d) memcpy(partial + d * rows, o + d * ld, sizeof(float) * rows);
  memcpy(partial + c.dim_v * rows, t.m, sizeof(float) * rows);
  memcpy(partial + (c.dim_v + 1) * rows, t.l, sizeof(float) * rows);
}

// True where keys and values are used where they lie; float8 ones get their decoding table.
template <class Dot>
bool in_place(const Call& c, Scratch& t) {
  if (c.cache_dtype == attnkit::kFp8E4M3 || c.cache_dtype == attnkit::kFp8E5M2)
    for (int b = 0; b < 256; ++b) t.fp8[b] = fp8_to_float(static_cast<uint8_t>(b), c.cache_dtype == attnkit::kFp8E4M3);
  return Dot::pairs || c.cache_dtype == attnkit::kFloat32;
}

}  // namespace

#include "few_rows.h"

namespace {

template <class Dot, int W>
void attend_as(const Call& c, const Item& it, float* partial) {
  Scratch& t = own_scratch();
  const View w(c, it);
  const int ld = (it.rows + W - 1) / W * W;
  const bool direct = in_place<Dot>(c, t);
  take_queries<Dot>(w, ld, t);
  for (int r = 0; r < ld; ++r) {
    t.m[r] = kNegInf;
    t.l[r] = 0.0f;
    t.q_pos[r] = static_cast<float>(w.position(r < it.rows ? r : it.rows - 1));
    t.slope[r] = c.alibi ? c.alibi[w.head(r < it.rows ? r : 0) * c.alibi_head] : 0.0f;
  }
  memset(t.o, 0, sizeof(float) * ld * c.dim_v);
  const int steps = Dot::pairs ? c.dim / 2 : c.dim, at_once = ld > 16 ? kKeys / 2 : kKeys;
  const int first = w.position(0), last = w.position(it.rows - 1);
  for (int j0 = it.key_lo; j0 < it.key_hi; j0 += at_once) {
    const int n = it.key_hi - j0 < at_once ? it.key_hi - j0 : at_once;
    take_keys<Dot>(w, j0, n, direct, t);
    score_rows<Dot, W>(t, ld, n, steps, t.s);
    const bool masked = (c.right >= 0 && j0 + n - 1 - first > c.right) || (c.left >= 0 && last - j0 > c.left);
    if (masked || w.shaped) shape_scores<W>(w, ld, j0, n, masked, t);
    soften<Dot, W>(ld, n, w.factor, t);
#ifdef __AVX512BF16__
    if constexpr (Dot::pairs) {
      for (int j = 0; j < n; j += 2)
        for (int i = 0; i < ld; i += W) round_pairs<W>(t.s + j * ld + i, t.s + (j + 1) * ld + i, t.p + j / 2 * ld + i);
      value_rows<Dot, W>(t, t.p, ld, (n + 1) / 2, c.dim_v);
      continue;
    }
#endif
    value_rows<Dot, W>(t, t.s, ld, n, c.dim_v);
  }
  leave(w, ld, t.o, t, partial);
}

template <int W>
void attend_wide(const Call& c, const Item& it, float* partial) {
#ifdef __AVX512BF16__
  const bool whole = c.dim % 2 == 0 && c.q_token % 2 == 0 && c.q_head % 2 == 0;
  if (c.dtype == attnkit::kBfloat16 && c.cache_dtype == attnkit::kBfloat16 && whole)
    return attend_as<Pairs, W>(c, it, partial);
#endif
  if (it.rows > kFewRows) return attend_as<Fma, W>(c, it, partial);
  Scratch& t = own_scratch();
  const View w(c, it);
  attend_few<kNarrow>(w, t, in_place<Fma>(c, t));
  leave(w, it.rows, t.s, t, partial);
}

void attend(const Call& c, const Item& it, float* partial) {
  if (kNarrow < kWidth && it.rows <= kNarrow) return attend_wide<kNarrow>(c, it, partial);
  attend_wide<kWidth>(c, it, partial);
}

// Partial results of one tile, in the order of their keys: the same bits whoever finished first.
void merge(const Call& c, const Item& it, float* const* partials) {
  Scratch& t = own_scratch();
  const View w(c, it);
  const int n = it.rows;
  for (int r = 0; r < n; ++r) {
    float top = kNegInf, sum = 0.0f;
    for (int p = 0; p < it.splits; ++p) {
      float m = partials[p][c.dim_v * n + r];
      top = m > top ? m : top;
    }
    t.m[r] = top;
    for (int p = 0; p < it.splits; ++p) {
      float m = partials[p][c.dim_v * n + r];
      float share = m == kNegInf ? 0.0f : __builtin_exp2f((m - top) * w.factor);
      t.s[p * n + r] = share;
      sum += share * partials[p][(c.dim_v + 1) * n + r];
    }
    t.l[r] = sum;
  }
  memset(t.o, 0, sizeof(float) * n * c.dim_v);
  for (int p = 0; p < it.splits; ++p)
    for (int d = 0; d < c.dim_v; ++d)
      for (int r = 0; r < n; ++r) t.o[d * n + r] += t.s[p * n + r] * partials[p][d * n + r];
  finish(w, n, t.o, t.m, t.l, t.row);
}

}  // namespace

namespace attnkit {
extern const Kernel ATTNKIT_KERNEL;
const Kernel ATTNKIT_KERNEL = {STRING(ATTNKIT_KERNEL), attend, merge};
}  // namespace attnkit
