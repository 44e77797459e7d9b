#ifndef TERRACE_BENCH_PEERS_BLOCK_STORE_H_
#define TERRACE_BENCH_PEERS_BLOCK_STORE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace terrace::peers {

struct StoreOptions {
  std::string dir;  // exists and is empty; the store may leave files in it
  size_t block_bytes = 0;
  size_t max_blocks = 0;    // distinct blocks that will be put at most
  size_t max_batch = 0;     // blocks of one call at most
  size_t memory_bytes = 0;  // of the whole process, page cache included
};

struct StoredBlock {
  uint64_t id = 0;
  absl::Span<const std::byte> bytes;  // [block_bytes], page-aligned
};

// What one thread reads with. Owned by that thread; must not outlive its store.
class BlockReader {
 public:
  virtual ~BlockReader() = default;
  // Sets `blocks` to the bytes of each id in order, [block_bytes] each, or an empty span for an id
  // that the store does not have. They are valid until Release, which comes before the next Get.
  virtual absl::Status Get(absl::Span<const uint64_t> ids,
                           std::vector<absl::Span<const std::byte>>& blocks) = 0;
  virtual void Release() {}
};

// A store of blocks as this benchmark sees it: Terrace or a peer, each by its own best calls for a
// batch. Put and Flush come from one thread while no other reads; readers of several threads may
// read at once.
class BlockStore {
 public:
  virtual ~BlockStore() = default;
  // Stores blocks that were not put before. They need not be durable, but readable at once.
  virtual absl::Status Put(absl::Span<const StoredBlock> blocks) = 0;
  // Makes everything durable.
  virtual absl::Status Flush() = 0;
  virtual absl::StatusOr<std::unique_ptr<BlockReader>> NewReader() = 0;
};

}  // namespace terrace::peers

#endif  // TERRACE_BENCH_PEERS_BLOCK_STORE_H_
