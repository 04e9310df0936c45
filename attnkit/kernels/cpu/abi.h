// The C interface of the CPU kernels: one struct, one function. library.py mirrors the struct in ctypes.
//
// Strides count elements, of index tensors too: those may be views. Positions: the last new token of a sequence sits at its length - 1.
#pragma once
#include <cstdint>

namespace attnkit {

enum Dtype : int32_t { kFloat32 = 0, kBfloat16 = 1, kFloat16 = 2, kFp8E4M3 = 3, kFp8E5M2 = 4 };

struct Call {
  const void* query;  // [tokens, heads, dim], rows contiguous
  const void* key;    // paged: [blocks, block_size, kv_heads, dim]; packed: [kv tokens, kv_heads, dim]
  const void* value;
  void* out;                       // [tokens, heads, dim_v], rows contiguous
  float* lse;                      // [tokens, heads] contiguous, or null
  const int32_t* block_table;      // [seqs, blocks]; null: packed
  const int32_t* seq_lens;         // [seqs]; packed: null
  const int32_t* key_start_loc;    // [seqs + 1]; paged: null
  const int32_t* query_start_loc;  // [seqs + 1]
  const float* alibi;              // [heads] or null
  const float* sinks;              // [heads] or null
  int64_t q_token, q_head, k_block, k_slot, k_head, v_block, v_slot, v_head, o_token, o_head;
  int64_t table_seq, table_block, lens_seq, k_start_seq, q_start_seq, alibi_head, sinks_head;
  int32_t num_seqs, heads, kv_heads, dim, dim_v, block_size;
  int32_t left, right;  // tokens visible beside the own position, -1: all; causal is right = 0
  int32_t dtype, cache_dtype;
  int32_t threads, isa;  // isa: an index of kIsas in dispatch.cpp
  float scale, softcap, v_scale;  // scale: softmax scale times the scale of a float8 key cache
};

// Where the new tokens of a sequence begin, and how many keys it has.
inline int32_t query_start(const Call& c, int64_t seq) { return c.query_start_loc[seq * c.q_start_seq]; }
inline int32_t key_start(const Call& c, int64_t seq) { return c.key_start_loc[seq * c.k_start_seq]; }
inline int32_t key_length(const Call& c, int64_t seq) {
  return c.seq_lens ? c.seq_lens[seq * c.lens_seq] : key_start(c, seq + 1) - key_start(c, seq);
}

// New keys and values to write into a paged cache. Strides count bytes.
struct Store {
  const void* key;    // [tokens, heads, key_bytes], rows contiguous
  const void* value;  // [tokens, heads, value_bytes], rows contiguous
  void* key_cache;    // [blocks, block_size, heads, key_bytes], rows contiguous
  void* value_cache;
  const int64_t* slots;  // [tokens] block * block_size + place in the block; negative: padding, not written
  int64_t k_token, k_head, v_token, v_head;
  int64_t kc_block, kc_slot, kc_head, vc_block, vc_slot, vc_head;
  int32_t tokens, heads, key_bytes, value_bytes, block_size, threads;
};

// A tile of rows (new tokens x query heads of one key head, flattened) against keys [key_lo, key_hi).
struct Item {
  int32_t seq, kv_head, row0, rows;
  int32_t key_lo, key_hi;
  int32_t first;   // index of this tile's first item where its keys are split among several
  int32_t splits;  // how many items share the tile; 1: the result goes straight to `out`
};

constexpr int kTileRows = 64;
constexpr int kMaxDim = 576;  // MLA's keys: 512 latent + 64 rotary

// Floats that a split leaves for the merge: [dim_v][rows] sums, the rows' maxima, their denominators.
inline int64_t partial_floats(const Call& c, const Item& item) { return static_cast<int64_t>(item.rows) * (c.dim_v + 2); }

struct Kernel {
  const char* name;
  void (*attend)(const Call&, const Item&, float* partial);
  void (*merge)(const Call&, const Item& first, float* const* partials);
};

}  // namespace attnkit
