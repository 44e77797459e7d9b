#ifndef TERRACE_INDEX_BLOCK_SUMMARY_H_
#define TERRACE_INDEX_BLOCK_SUMMARY_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "index/kv_dtype.h"
#include "index/summary_scores.h"

namespace terrace {

// What a lookup keeps in DRAM of a KV block, to tell what a query would find there without reading
// it. A summary is a few bytes for the keys of one KV head, in the state (before or after RoPE)
// that the keys have in the block. Constant after construction, so thread-safe.
class BlockSummary {
 public:
  virtual ~BlockSummary() = default;

  // Of one block and KV head.
  virtual size_t bytes() const = 0;
  // Whether Summarise profits from token masses.
  virtual bool wants_masses() const = 0;
  // `keys` is [tokens, head_dim] of `dtype`; `masses` is [tokens], the attention that each token
  // received so far, or empty when that is not known; `summary` is [bytes()], aligned to 4.
  virtual void Summarise(const void* keys, KvDtype dtype, absl::Span<const float> masses,
                         absl::Span<std::byte> summary) const = 0;
  // An estimate of the largest logit that each query has in each block. `queries` is
  // [rows, head_dim], scaled by 1 / sqrt(head_dim); `scores` is [rows, summaries].
  virtual void Score(absl::Span<const float> queries, absl::Span<const std::byte* const> summaries,
                     absl::Span<float> scores) const = 0;

  // For those who score elsewhere: what a summary consists of, and the queries of Score as its
  // vectors meet them. A score is that of SummaryQueries::Score.
  virtual SummaryLayout layout() const = 0;
  virtual SummaryQueries Prepare(absl::Span<const float> queries) const = 0;
};

// Which keys stand for a block.
enum class RepresentativeChoice : uint8_t {
  // Those with the largest norm, which are those that can have the largest logits.
  kLargestNorm,
  // Those of the tokens that received most attention while they were in the local window, as
  // published; evenly spaced ones where that is not known.
  kMostMass,
};

struct RepresentativeOptions {
  size_t head_dim = 128;
  size_t tokens = 128;  // a block
  size_t count = 8;     // representatives of a block
  RepresentativeChoice choice = RepresentativeChoice::kLargestNorm;
  // The mean of the representatives instead of each: with a sum over heads it ranks blocks as the
  // paper does.
  bool averaged = false;
};
// InfLLM (arXiv 2402.04617, section 3.2): some keys of the block, in 8 bits with a scale each,
// scored by the best of them: a lower bound of the block's largest logit, up to that rounding.
// kInvalidArgument naming the field.
absl::StatusOr<std::unique_ptr<BlockSummary>> MakeRepresentatives(
    const RepresentativeOptions& options);

struct KeyBoundOptions {
  size_t head_dim = 128;
  size_t tokens = 128;      // a block
  size_t page_tokens = 16;  // divides `tokens`
};
// Quest (arXiv 2406.10774, section 3.3): the smallest and the largest element of each channel over
// the keys of a page, in 8 bits and rounded outwards. The score is the best of the pages' upper
// bounds, so an upper bound of the block's largest logit. kInvalidArgument naming the field.
absl::StatusOr<std::unique_ptr<BlockSummary>> MakeKeyBounds(const KeyBoundOptions& options);

}  // namespace terrace

#endif  // TERRACE_INDEX_BLOCK_SUMMARY_H_
