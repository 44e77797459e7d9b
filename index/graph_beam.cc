#include "index/graph_beam.h"

#include <algorithm>
#include <limits>

namespace terrace {
namespace {

constexpr size_t kWordBits = 64;

}  // namespace

void GraphBeam::Start(size_t width, size_t keys) {
  width_ = width;
  count_ = 0;
  next_ = 0;
  seen_count_ = 0;
  if (best_.size() < width + 1) best_.resize(width + 1);
  // A bit for each key stays in the first cache, where stamps of a word for each would not, and
  // clearing it costs less than scoring ten keys.
  seen_.assign((keys + kWordBits - 1) / kWordBits, 0);
}

absl::Span<const uint32_t> GraphBeam::Unseen(absl::Span<const uint32_t> keys) {
  if (unseen_.size() < keys.size()) unseen_.resize(keys.size());
  size_t count = 0;
  for (const uint32_t key : keys) {
    uint64_t& word = seen_[key / kWordBits];
    const uint64_t bit = uint64_t{1} << key % kWordBits;
    // Without a branch, which would be a coin toss.
    unseen_[count] = key;
    count += (word & bit) == 0;
    word |= bit;
  }
  seen_count_ += count;
  return absl::MakeConstSpan(unseen_.data(), count);
}

bool GraphBeam::Expand(const KeyGraph& graph, absl::Span<const uint32_t>& unseen) {
  if (next_ == count_) return false;
  best_[next_].expanded = true;
  const uint32_t key = best_[next_].key;
  while (next_ < count_ && best_[next_].expanded) ++next_;
  unseen = Unseen(graph.neighbours(key));
  return true;
}

void GraphBeam::Offer(absl::Span<const uint32_t> keys, const float* scores) {
  for (size_t i = 0; i < keys.size(); ++i) {
    if (count_ < width_) {
      const bool is_number = scores[i] == scores[i];
      Insert(keys[i], is_number ? scores[i] : -std::numeric_limits<float>::infinity());
    } else if (scores[i] > best_[count_ - 1].score) {
      Insert(keys[i], scores[i]);
    }
  }
}

// Of equal scores the smaller key comes first.
void GraphBeam::Insert(uint32_t key, float score) {
  Scored* const begin = best_.data();
  Scored* const end = begin + count_;
  Scored* const at =
      std::upper_bound(begin, end, Scored{score, key, false}, [](const Scored& a, const Scored& b) {
        return a.score != b.score ? a.score > b.score : a.key < b.key;
      });
  std::copy_backward(at, end, end + 1);
  *at = {score, key, false};
  count_ = std::min(count_ + 1, width_);
  next_ = std::min(next_, static_cast<size_t>(at - begin));
}

size_t GraphBeam::memory_bytes() const {
  return best_.capacity() * sizeof(Scored) + seen_.capacity() * sizeof(uint64_t) +
         unseen_.capacity() * sizeof(uint32_t);
}

}  // namespace terrace
