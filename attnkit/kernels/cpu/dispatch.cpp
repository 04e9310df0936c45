// The entry: which instruction set, which items of work, which threads.
//
// Threads are those of the OpenMP runtime that torch has already loaded, called through its own entry point: a second runtime
// in the process would keep a second set of threads spinning on the same cores. Nothing here links against one.
#include <dlfcn.h>

#include <atomic>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "abi.h"

namespace attnkit {

extern const Kernel portable;
#if defined(__x86_64__)
extern const Kernel avx2, avx512, avx512bf16;
#endif

namespace {

#if defined(__x86_64__)
const Kernel* const kIsas[] = {&portable, &avx2, &avx512, &avx512bf16};

bool supported(int isa) {
  __builtin_cpu_init();
  bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  switch (isa) {
    case 0: return true;
    case 1: return has_avx2;
    case 2: return has_avx512;
    default: return has_avx512 && __builtin_cpu_supports("avx512bf16");
  }
}
#else
const Kernel* const kIsas[] = {&portable};

bool supported(int isa) { return isa == 0; }
#endif
constexpr int kIsaCount = sizeof(kIsas) / sizeof(kIsas[0]);

using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

// The runtime that torch calls: a symbol of the process (a preloaded one comes before torch's own there, for torch, too), else
// of what libtorch_cpu needs. Never one of another name that happens to be loaded: packages bring copies of their own.
Parallel openmp() {
  static const Parallel found = [] {
    void* entry = dlsym(RTLD_DEFAULT, "GOMP_parallel");
    if (void* torch = entry ? nullptr : dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD)) entry = dlsym(torch, "GOMP_parallel");
    return reinterpret_cast<Parallel>(entry);
  }();
  return found;
}

void run_parallel(void (*work)(void*), void* data, int threads) {
  if (threads <= 1) return work(data);
  if (Parallel parallel = openmp()) return parallel(work, data, static_cast<unsigned>(threads), 0);
  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i) others.emplace_back(work, data);
  work(data);
  for (std::thread& other : others) other.join();
}

struct Work {
  const Call& call;
  const Kernel& kernel;
  std::vector<Item> items;
  std::vector<float*> partials;  // by item; null where the tile is not split
  std::unique_ptr<std::atomic<int>[]> left;  // by first item: splits not finished yet
  std::atomic<int> next{0};
};

void work_on(void* data) {
  Work& w = *static_cast<Work*>(data);
  const int count = static_cast<int>(w.items.size());
  for (int i = w.next.fetch_add(1); i < count; i = w.next.fetch_add(1)) {
    const Item& item = w.items[i];
    w.kernel.attend(w.call, item, w.partials.empty() ? nullptr : w.partials[i]);
    if (item.splits > 1 && w.left[item.first].fetch_sub(1) == 1)
      w.kernel.merge(w.call, w.items[item.first], &w.partials[item.first]);
  }
}

struct Storing {
  const Store& store;
  std::atomic<int> next{0};
};

constexpr int kStoredAtOnce = 64;                    // tokens
constexpr int64_t kStoredByOneThread = int64_t{1} << 18;  // bytes; fewer are written before a second thread has begun

void store_on(void* data) {
  Storing& w = *static_cast<Storing*>(data);
  const Store& s = w.store;
  const auto at = [](const void* base, int64_t offset) { return static_cast<const char*>(base) + offset; };
  for (int first = w.next.fetch_add(kStoredAtOnce); first < s.tokens; first = w.next.fetch_add(kStoredAtOnce)) {
    const int last = first + kStoredAtOnce < s.tokens ? first + kStoredAtOnce : s.tokens;
    for (int token = first; token < last; ++token) {
      if (s.slots[token] < 0) continue;
      const int64_t block = s.slots[token] / s.block_size, slot = s.slots[token] % s.block_size;
      char* key = static_cast<char*>(s.key_cache) + block * s.kc_block + slot * s.kc_slot;
      char* value = static_cast<char*>(s.value_cache) + block * s.vc_block + slot * s.vc_slot;
      for (int head = 0; head < s.heads; ++head) {
        std::memcpy(key + head * s.kc_head, at(s.key, token * s.k_token + head * s.k_head), s.key_bytes);
        std::memcpy(value + head * s.vc_head, at(s.value, token * s.v_token + head * s.v_head), s.value_bytes);
      }
    }
  }
}

constexpr int kLeastSplit = 256;  // keys; under this the merge costs more than the second thread saves
constexpr int kMaxSplits = 64;    // what merge() has room for

struct Range {
  int lo, hi;
};

// The keys that any row of a tile may see.
Range visible(const Call& c, int length, int query_len, int group, int row0, int rows) {
  const int first = length - query_len + row0 / group, last = length - query_len + (row0 + rows - 1) / group;
  int lo = c.left >= 0 && first - c.left > 0 ? first - c.left : 0;
  int hi = c.right >= 0 && last + c.right + 1 < length ? last + c.right + 1 : length;
  if (hi < 0) hi = 0;
  if (lo > hi) lo = hi;
  return {lo, hi};
}

// Tiles of rows, later ones first (causal ones are the longest); long tiles are split over their keys until there is work
// enough for every thread. True where any is split. Depends on shapes and the number of threads alone: the same call gives the same bits.
bool plan(Work& w) {
  const Call& c = w.call;
  const int group = c.heads / c.kv_heads;
  std::vector<Item> tiles;
  int64_t total = 0;
  for (int seq = 0; seq < c.num_seqs; ++seq) {
    const int query_len = query_start(c, seq + 1) - query_start(c, seq);
    const int length = key_length(c, seq);
    const int all = query_len * group;
    for (int row0 = (all - 1) / kTileRows * kTileRows; all > 0 && row0 >= 0; row0 -= kTileRows) {
      const int rows = all - row0 < kTileRows ? all - row0 : kTileRows;
      const Range keys = visible(c, length, query_len, group, row0, rows);
      for (int head = 0; head < c.kv_heads; ++head) {
        tiles.push_back({seq, head, row0, rows, keys.lo, keys.hi, 0, 1});
        total += keys.hi - keys.lo;
      }
    }
  }
  int64_t most = total / (4 * (c.threads > 0 ? c.threads : 1));
  if (most < kLeastSplit) most = kLeastSplit;
  bool split = false;
  w.items.reserve(tiles.size());
  for (Item tile : tiles) {
    const int span = tile.key_hi - tile.key_lo;
    int64_t parts = c.threads > 1 ? span / most : 1;
    parts = parts < 2 ? 1 : parts > kMaxSplits ? kMaxSplits : parts;
    tile.first = static_cast<int32_t>(w.items.size());
    tile.splits = static_cast<int32_t>(parts);
    const int lo = tile.key_lo;
    for (int64_t part = 0; part < parts; ++part) {
      tile.key_lo = lo + static_cast<int>(span * part / parts);
      tile.key_hi = lo + static_cast<int>(span * (part + 1) / parts);
      w.items.push_back(tile);
    }
    split = split || parts > 1;
  }
  return split;
}

}  // namespace
}  // namespace attnkit

extern "C" {

// 0: done. 1: an instruction set that this processor lacks. 2: outside what the kernels hold.
__attribute__((visibility("default"))) int attnkit_cpu_attention(const attnkit::Call* call) {
  using namespace attnkit;
  if (call->isa < 0 || call->isa >= kIsaCount || !supported(call->isa)) return 1;
  if (call->dim > kMaxDim || call->dim_v > kMaxDim || call->dim < 1 || call->dim_v < 1) return 2;
  Work work{*call, *kIsas[call->isa], {}, {}, nullptr};
  const bool split = plan(work);
  const int count = static_cast<int>(work.items.size());
  if (!count) return 0;
  static thread_local std::vector<float> room;  // kept: fresh memory would be cleared page by page in every call
  if (split) {
    work.partials.assign(count, nullptr);
    work.left.reset(new std::atomic<int>[count]);
    int64_t floats = 0;
    for (const Item& item : work.items) floats += item.splits > 1 ? partial_floats(*call, item) : 0;
    if (room.size() < static_cast<size_t>(floats)) room.resize(floats);
    float* free = room.data();
    for (int i = 0; i < count; ++i) {
      const Item& item = work.items[i];
      work.left[i].store(item.splits);
      if (item.splits > 1) {
        work.partials[i] = free;
        free += partial_floats(*call, item);
      }
    }
  }
  run_parallel(work_on, &work, count < call->threads ? count : call->threads);
  return 0;
}

__attribute__((visibility("default"))) void attnkit_cpu_store(const attnkit::Store* store) {
  attnkit::Storing work{*store};
  const int64_t bytes = int64_t{store->tokens} * store->heads * (store->key_bytes + store->value_bytes);
  attnkit::run_parallel(attnkit::store_on, &work, bytes > attnkit::kStoredByOneThread ? store->threads : 1);
}

__attribute__((visibility("default"))) int attnkit_cpu_isa_count() { return attnkit::kIsaCount; }

__attribute__((visibility("default"))) const char* attnkit_cpu_isa_name(int isa) { return attnkit::kIsas[isa]->name; }

__attribute__((visibility("default"))) int attnkit_cpu_isa_supported(int isa) {
  return isa >= 0 && isa < attnkit::kIsaCount && attnkit::supported(isa);
}

// The file of the OpenMP runtime whose threads are used; empty: none, threads of our own.
__attribute__((visibility("default"))) const char* attnkit_cpu_openmp() {
  Dl_info info{};
  attnkit::Parallel entry = attnkit::openmp();
  return entry && dladdr(reinterpret_cast<void*>(entry), &info) && info.dli_fname ? info.dli_fname : "";
}

__attribute__((visibility("default"))) int attnkit_cpu_struct_size() {
  return sizeof(attnkit::Call) + sizeof(attnkit::Store);
}
}
