#ifndef TERRACE_BENCH_PEERS_WORKLOAD_H_
#define TERRACE_BENCH_PEERS_WORKLOAD_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace terrace::peers {

using Batch = std::vector<uint64_t>;  // ids of one call

struct Operation {
  enum class Kind : uint8_t { kPut, kGet } kind = Kind::kPut;
  Batch ids;
};

struct WorkloadOptions {
  std::string ops_path;   // as `terrace replay --export-ops` writes it; empty for a made-up mix
  size_t max_blocks = 0;  // distinct; the operations end before the put of one more
  size_t block_bytes = 0;
  size_t max_batch = 0;        // longer gets are split
  size_t uniform_batches = 0;  // of 16 blocks
  uint64_t seed = 1;
};

// What every store has to do, and the checksums to verify it by. Every block is put once, before
// any get of it, so that a miss is always a failure of the store. Immutable after Make;
// thread-safe.
class Workload {
 public:
  // Errors: kNotFound, kInvalidArgument naming the line.
  static absl::StatusOr<Workload> Make(const WorkloadOptions& options);

  size_t block_count() const { return checksums_.size(); }
  size_t block_bytes() const { return options_.block_bytes; }
  size_t max_batch() const { return options_.max_batch; }
  // The mix, in order.
  absl::Span<const Operation> operations() const { return operations_; }
  // The gets of the mix, and as many of blocks drawn uniformly from all.
  absl::Span<const Batch> trace_gets() const { return trace_gets_; }
  absl::Span<const Batch> uniform_gets() const { return uniform_gets_; }

  // Writes the bytes of a block, which no compression makes smaller: [block_bytes], a random
  // pattern that each id changes in every word. Costs little more than a copy.
  void Generate(uint64_t id, absl::Span<std::byte> block) const;
  // Whether `block` has exactly the bytes of Generate, by XXH3-64. REQUIRES: the id is put.
  bool IsRight(uint64_t id, absl::Span<const std::byte> block) const;

 private:
  explicit Workload(const WorkloadOptions& options) : options_(options) {}
  absl::Status ReadOperations();
  void MakeUpOperations();
  // False once the block would be one too many. A block that was put before is left out.
  bool AddPut(uint64_t id);
  // Leaves out blocks that were not put.
  void AddGet(absl::Span<const uint64_t> ids);
  void MakeGets();

  WorkloadOptions options_;
  std::vector<uint64_t> pattern_;  // [block_bytes / 8]
  std::vector<Operation> operations_;
  std::vector<Batch> trace_gets_;
  std::vector<Batch> uniform_gets_;
  std::vector<uint64_t> ids_;                          // in the order of their puts
  absl::flat_hash_map<uint64_t, uint64_t> checksums_;  // by id
};

}  // namespace terrace::peers

#endif  // TERRACE_BENCH_PEERS_WORKLOAD_H_
