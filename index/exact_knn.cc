#include "index/exact_knn.h"

#include <algorithm>
#include <limits>
#include <memory>

#include "index/kv_convert.h"

// Arrays of vectors need vectors of a size that the compiler knows.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "index/exact_knn.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"

// Highway includes this file once for each instruction set.
#ifndef TERRACE_INDEX_EXACT_KNN_SHARED_
#define TERRACE_INDEX_EXACT_KNN_SHARED_
namespace terrace {
namespace {

constexpr size_t kRowTile = 6;      // query rows whose sums are in registers at a time
constexpr size_t kKeyTile = 32;     // keys of a packed tile: [head_dim, kKeyTile]
constexpr size_t kBlockRows = 384;  // rows that share one packing of the keys; 64 tiles

// The best k of the scores that it is offered in ascending order of keys.
class BestKeys {
 public:
  explicit BestKeys(size_t k) : k_(k) { found_.reserve(2 * k); }

  // Scores up to this one are not among the best.
  float threshold() const { return threshold_; }
  void Offer(uint32_t key, float score) {
    found_.push_back({score, key});
    if (found_.size() == 2 * k_) Cut();
  }
  void Take(uint32_t* keys) {
    if (found_.size() > k_) Cut();
    std::sort(found_.begin(), found_.end(), Before);
    for (size_t i = 0; i < found_.size(); ++i) keys[i] = found_[i].key;
  }

 private:
  struct Scored {
    float score;
    uint32_t key;
  };
  static bool Before(const Scored& a, const Scored& b) {
    return a.score != b.score ? a.score > b.score : a.key < b.key;
  }
  void Cut() {
    std::nth_element(found_.begin(), found_.begin() + static_cast<ptrdiff_t>(k_ - 1), found_.end(),
                     Before);
    found_.resize(k_);
    threshold_ = found_.back().score;
  }

  const size_t k_;
  std::vector<Scored> found_;
  float threshold_ = -std::numeric_limits<float>::infinity();
};

}  // namespace
}  // namespace terrace
#endif  // TERRACE_INDEX_EXACT_KNN_SHARED_

HWY_BEFORE_NAMESPACE();
namespace terrace {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

using FloatTag = hn::CappedTag<float, 16>;

// Inner products of a tile of rows, [head_dim, kRowTile], with a tile of keys: [kRowTile,
// kKeyTile].
void MultiplyTile(const float* HWY_RESTRICT rows, const float* HWY_RESTRICT keys, size_t head_dim,
                  float* HWY_RESTRICT scores) {
  const FloatTag floats;
  const size_t lanes = hn::Lanes(floats);
  for (size_t at = 0; at < kKeyTile; at += 2 * lanes) {
    hn::Vec<FloatTag> first[kRowTile];
    hn::Vec<FloatTag> second[kRowTile];
    for (size_t r = 0; r < kRowTile; ++r) first[r] = second[r] = hn::Zero(floats);
    for (size_t i = 0; i < head_dim; ++i) {
      const auto a = hn::LoadU(floats, keys + i * kKeyTile + at);
      const auto b = hn::LoadU(floats, keys + i * kKeyTile + at + lanes);
      for (size_t r = 0; r < kRowTile; ++r) {
        const auto row = hn::Set(floats, rows[i * kRowTile + r]);
        first[r] = hn::MulAdd(row, a, first[r]);
        second[r] = hn::MulAdd(row, b, second[r]);
      }
    }
    for (size_t r = 0; r < kRowTile; ++r) {
      hn::StoreU(first[r], floats, scores + r * kKeyTile + at);
      hn::StoreU(second[r], floats, scores + r * kKeyTile + at + lanes);
    }
  }
}

// Offers those of `count` scores that may be among the best.
void Collect(const float* HWY_RESTRICT scores, size_t count, uint32_t first_key, BestKeys& best) {
  const FloatTag floats;
  const size_t lanes = hn::Lanes(floats);
  for (size_t at = 0; at < count; at += lanes) {
    const auto above = hn::Gt(hn::LoadU(floats, scores + at), hn::Set(floats, best.threshold()));
    if (HWY_LIKELY(hn::AllFalse(floats, above))) continue;
    for (size_t i = at; i < std::min(at + lanes, count); ++i) {
      if (scores[i] > best.threshold()) best.Offer(first_key + static_cast<uint32_t>(i), scores[i]);
    }
  }
}

// Scores one packed tile of keys, of which `count` are keys, against the packed tiles of rows.
void ScoreBlock(const float* packed_rows, const float* packed_keys, size_t head_dim, size_t count,
                uint32_t first_key, BestKeys* best, size_t rows) {
  HWY_ALIGN float scores[kRowTile * kKeyTile];
  for (size_t row = 0; row < rows; row += kRowTile) {
    MultiplyTile(packed_rows + row * head_dim, packed_keys, head_dim, scores);
    for (size_t r = 0; r < std::min(kRowTile, rows - row); ++r) {
      Collect(scores + r * kKeyTile, count, first_key, best[row + r]);
    }
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace terrace
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace terrace {
namespace {

HWY_EXPORT(ScoreBlock);

// Rows side by side, so that one step over the dimensions reads what lies together:
// [tiles, head_dim, kRowTile], rows beyond the last one zero.
std::vector<float> PackRows(absl::Span<const float> queries, size_t head_dim) {
  const size_t rows = queries.size() / head_dim;
  std::vector<float> packed((rows + kRowTile - 1) / kRowTile * kRowTile * head_dim, 0.0f);
  for (size_t row = 0; row < rows; ++row) {
    float* const tile = packed.data() + row / kRowTile * kRowTile * head_dim + row % kRowTile;
    for (size_t i = 0; i < head_dim; ++i) tile[i * kRowTile] = queries[row * head_dim + i];
  }
  return packed;
}

// Up to kKeyTile keys from `first` on, which lie in one panel or several.
void PackKeys(const KeyPanels& keys, size_t first, size_t count, float* row, float* packed) {
  for (size_t k = 0; k < count; ++k) {
    DecodeKv(keys.key(first + k), keys.dtype(), keys.head_dim(), row);
    for (size_t i = 0; i < keys.head_dim(); ++i) packed[i * kKeyTile + k] = row[i];
  }
}

// The best keys of up to kBlockRows rows.
void FindForBlock(absl::Span<const float> queries, const KeyPanels& keys, size_t k,
                  uint32_t* found) {
  const size_t head_dim = keys.head_dim();
  const size_t rows = queries.size() / head_dim;
  const std::vector<float> packed_rows = PackRows(queries, head_dim);
  std::vector<float> packed_keys(kKeyTile * head_dim, 0.0f);
  std::vector<float> row(head_dim);
  std::vector<BestKeys> best(rows, BestKeys(k));
  for (size_t first = 0; first < keys.size(); first += kKeyTile) {
    const size_t count = std::min(kKeyTile, keys.size() - first);
    PackKeys(keys, first, count, row.data(), packed_keys.data());
    HWY_DYNAMIC_DISPATCH(ScoreBlock)
    (packed_rows.data(), packed_keys.data(), head_dim, count, static_cast<uint32_t>(first),
     best.data(), rows);
  }
  for (size_t r = 0; r < rows; ++r) best[r].Take(found + r * k);
}

}  // namespace

std::vector<uint32_t> ExactNeighbours(absl::Span<const float> queries, const KeyPanels& keys,
                                      size_t k, ComputePool& pool) {
  k = std::min(k, keys.size());
  const size_t rows = queries.size() / keys.head_dim();
  std::vector<uint32_t> found(rows * k);
  if (found.empty()) return found;
  pool.ForEach((rows + kBlockRows - 1) / kBlockRows, [&](size_t job, size_t) {
    const size_t first = job * kBlockRows;
    const size_t count = std::min(kBlockRows, rows - first);
    FindForBlock(queries.subspan(first * keys.head_dim(), count * keys.head_dim()), keys, k,
                 found.data() + first * k);
  });
  return found;
}

}  // namespace terrace
#endif  // HWY_ONCE
