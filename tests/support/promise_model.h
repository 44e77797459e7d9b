#ifndef TERRACE_TESTS_SUPPORT_PROMISE_MODEL_H_
#define TERRACE_TESTS_SUPPORT_PROMISE_MODEL_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "tiers/tier.h"

namespace terrace {

// What a tier owes its caller for blocks 0, 1, ... that are put, dropped and flushed: which bytes
// it may serve, which it must still have after a power cut, and which must never come back. The
// bytes of a block are those of a version, and another version follows each drop.
//
// Each block belongs to one thread, which tells the model before and after every call that may
// change the block. Thread-safe.
class PromiseModel {
 public:
  enum class Change : uint8_t { kPut, kPutOwned, kDrop, kOwn, kDisown };

  // How many promises Check has compared, of each kind.
  struct Counts {
    uint64_t kept = 0;       // a flushed block that must be there
    uint64_t retention = 0;  // the retention of a flushed block
    uint64_t gone = 0;       // a block of which no version, or not every one, may be there
  };

  // The state of all blocks when a flush began.
  struct FlushStart {
    struct Block {
      bool settled = false;  // present, and no call on it was under way
      uint64_t changes = 0;
      uint64_t version = 0;
      uint64_t floor = 0;
      Retention retention = Retention::kCached;
    };
    std::vector<Block> blocks;
  };

  explicit PromiseModel(uint64_t block_count) : blocks_(block_count) {}

  uint64_t block_count() const { return blocks_.size(); }
  // The bytes that a Put of the block has, and that it is served with.
  uint64_t version(uint64_t number) const ABSL_LOCKS_EXCLUDED(mu_);
  uint64_t newest_version(uint64_t number) const ABSL_LOCKS_EXCLUDED(mu_);
  // Owned, and so not to be evicted.
  bool must_be_here(uint64_t number) const ABSL_LOCKS_EXCLUDED(mu_);

  // `power`: the disk was on, so that the change may have reached it.
  void Begin(uint64_t number, Change change, bool power) ABSL_LOCKS_EXCLUDED(mu_);
  // `present`: the tier has the block now.
  void End(uint64_t number, Change change, bool present) ABSL_LOCKS_EXCLUDED(mu_);
  // The block could not be read, or written.
  void Lost(uint64_t number) ABSL_LOCKS_EXCLUDED(mu_);

  FlushStart BeginFlush() const ABSL_LOCKS_EXCLUDED(mu_);
  // The flush returned OK. Cached blocks that are `on_nvme` now must be there for as long as the
  // tier has evicted no more than `evicted_segments`.
  void EndFlush(const FlushStart& start, uint64_t evicted_segments,
                const std::function<bool(uint64_t number)>& on_nvme) ABSL_LOCKS_EXCLUDED(mu_);

  // What is wrong about a block that a tier serves with the bytes of `served` after a power cut, or
  // not at all; empty when nothing is. `evicted_segments`: how many it had evicted by the cut.
  std::string Check(uint64_t number, std::optional<uint64_t> served, Retention retention,
                    uint64_t evicted_segments) ABSL_LOCKS_EXCLUDED(mu_);
  // Goes on from there: what a reopened tier holds is on its disk.
  void Recovered(uint64_t number, std::optional<uint64_t> served, Retention retention)
      ABSL_LOCKS_EXCLUDED(mu_);
  // The tier may have been started afresh; nothing must be there any more.
  void BreakPromises() ABSL_LOCKS_EXCLUDED(mu_);
  // It has been started afresh; nothing may be there any more.
  void StartEmpty() ABSL_LOCKS_EXCLUDED(mu_);

  Counts counts() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  struct Promise {
    uint64_t version = 0;
    Retention retention = Retention::kCached;
    bool kept = true;  // it must be there; a cached one only if no segment was evicted
    bool retention_kept = true;
    uint64_t evicted_segments = 0;  // when the promise was made
  };
  struct Block {
    uint64_t version = 0;
    uint64_t newest = 0;   // version that was ever given out
    uint64_t floor = 0;    // versions below were dropped
    uint64_t oldest = 0;   // versions below were dropped for good
    uint64_t changes = 0;  // calls that were begun
    bool busy = false;
    bool present = false;  // a cached one may have been evicted since
    Retention retention = Retention::kCached;
    std::optional<Promise> promise;
  };

  mutable absl::Mutex mu_;
  std::vector<Block> blocks_ ABSL_GUARDED_BY(mu_);
  Counts counts_ ABSL_GUARDED_BY(mu_);
};

}  // namespace terrace

#endif  // TERRACE_TESTS_SUPPORT_PROMISE_MODEL_H_
