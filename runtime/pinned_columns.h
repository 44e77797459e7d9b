#ifndef TERRACE_RUNTIME_PINNED_COLUMNS_H_
#define TERRACE_RUNTIME_PINNED_COLUMNS_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "index/key_panels.h"
#include "runtime/column_table.h"
#include "runtime/runtime_core.h"
#include "tiers/lease.h"

namespace terrace {

// Sealed keys and values of some KV heads of one layer of a context, kept in DRAM by leases, so
// that single tokens can be read where they lie. Column 0, which has the sinks, is left out: tokens
// are numbered from that of column 1 on. Copies share what they hold.
//
// Thread-compatible; const members are thread-safe.
class PinnedColumns {
 public:
  // `core` outlives it.
  PinnedColumns(RuntimeCore& core, size_t layer, std::vector<size_t> kv_heads);

  absl::Span<const size_t> kv_heads() const { return kv_heads_; }
  // Columns 1 to columns() are held.
  size_t columns() const { return columns_; }

  // Brings the blocks of `columns` below `end` into DRAM, where they are not, and keeps them there.
  // kResourceExhausted where DRAM has no room, kDataLoss where a block is lost; then it is as it
  // was.
  absl::Status Extend(absl::Span<const ColumnIndex> columns, size_t end);
  // Lets go of all but columns 1 to `columns`, and of some of these where leases are not cut there.
  void Truncate(size_t columns);

  // What it holds of a head, which it has.
  KeyPanels Keys(size_t kv_head) const { return Panels(kv_head, 0); }
  KeyPanels Values(size_t kv_head) const { return Panels(kv_head, value_offset()); }
  // Copies keys and values of these tokens: the keys to `to`, [tokens, head_dim], and the values
  // behind them.
  void Gather(size_t kv_head, absl::Span<const uint32_t> tokens, std::byte* to) const;

 private:
  struct Batch {
    Batch(RuntimeCore& runtime, size_t before, Lease blocks)
        : core(runtime), first(before), lease(std::move(blocks)) {}
    ~Batch() { core.GivePins(lease.size()); }
    RuntimeCore& core;
    const size_t first;  // columns before
    const Lease lease;
  };

  // The pins of the blocks were taken, and are the batch's from then on.
  absl::Status PinBatch(absl::Span<const ColumnIndex> columns, size_t count);
  KeyPanels Panels(size_t kv_head, size_t offset) const;
  size_t value_offset() const;

  RuntimeCore* core_;
  size_t layer_;
  std::vector<size_t> kv_heads_;
  size_t columns_ = 0;
  std::vector<std::vector<const std::byte*>> blocks_;  // [all KV heads, columns]
  std::vector<std::shared_ptr<const Batch>> batches_;  // shared with copies
};

}  // namespace terrace

#endif  // TERRACE_RUNTIME_PINNED_COLUMNS_H_
