#ifndef TERRACE_RUNTIME_WEIGHT_READER_H_
#define TERRACE_RUNTIME_WEIGHT_READER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "io/aligned_buffer.h"
#include "io/io_scheduler.h"

namespace terrace {

struct WeightReaderOptions {
  // Inside the device at once; of those, the ones that nobody waits for.
  size_t depth = 64;
  size_t prefetch_depth = 32;
  // Two fragments with at most so many bytes between them are read together...
  uint64_t gap_bytes = 0;
  // ...as long as the bytes of such gaps stay below this share of what a call wants.
  double max_overread = 0.2;
  // A request that joins fragments is no longer than this.
  uint64_t request_bytes = uint64_t{128} << 10;
  // Requests that there are: under way, or finished and not yet taken. Half of them are kept for
  // demand. 2 or more.
  size_t max_reads = 256;
  std::shared_ptr<DeviceShare> share = {};
  std::shared_ptr<Timeline> timeline = {};
};

struct WeightReaderStats {
  uint64_t reads = 0;         // requests
  uint64_t read_bytes = 0;    // gaps included
  uint64_t wanted_bytes = 0;  // fragments alone
  double io_seconds = 0;      // some read was under way
};

// Reads pieces of a bundle file straight to where they belong, neighbours together.
//
// One thread calls it; reads run on the I/O thread of its IoScheduler. Nothing is allocated after
// Create but where a call has more fragments than any before.
class WeightReader {
 public:
  // A run of whole pages of the file, and where they go. Its memory belongs to the reader until the
  // arrival with its tag.
  struct Fragment {
    uint64_t offset = 0;
    std::byte* to = nullptr;
    uint32_t bytes = 0;
    uint32_t read = kNoRead;  // set by the reader: what Raise takes
    uint64_t tag = 0;         // the caller's own
  };
  // A fragment that came back. Where `read` failed, its Status can be asked for until the next
  // call.
  struct Arrival {
    uint64_t tag = 0;
    bool ok = false;
  };
  static constexpr uint32_t kNoRead = UINT32_MAX;
  static constexpr size_t kMaxFragments = 16;  // of one read

  // Tells the device about `memory`, where most fragments go; it outlives the reader.
  static absl::StatusOr<std::unique_ptr<WeightReader>> Create(std::unique_ptr<BlockDevice> device,
                                                              const WeightReaderOptions& options,
                                                              absl::Span<const iovec> memory);
  // Waits for everything under way.
  ~WeightReader();
  // Beside the fragments that wait for a free request.
  static uint64_t MemoryBytes(const WeightReaderOptions& options);

  // Reads all of them as soon as requests are free; reorders them.
  void Demand(absl::Span<Fragment> fragments);
  // Fragments that Prefetch would take now.
  size_t PrefetchRoom() const;
  // Reads them behind what is demanded; reorders them. REQUIRES: at most PrefetchRoom().
  void Prefetch(absl::Span<Fragment> fragments);
  // Somebody waits for this read of a Prefetch now. No effect when it is over.
  void Raise(uint32_t read);
  // The same for all reads of fragments whose tag has `value` in the bits of `mask`. Looks at all
  // requests that there are.
  void RaiseTagged(uint64_t mask, uint64_t value);

  // What arrived since the last call, valid until the next. Begins reads that waited for a free
  // request.
  absl::Span<const Arrival> Take();
  // The same, but waits for at least one. REQUIRES: something is under way.
  absl::Span<const Arrival> Wait();
  // Fragments that did not arrive through Take or Wait yet.
  size_t under_way() const { return under_way_; }
  // The last failure that an arrival reported; OK when none did.
  const absl::Status& last_error() const { return last_error_; }

  WeightReaderStats Stats() const ABSL_LOCKS_EXCLUDED(mu_);
  const DeviceInfo& device_info() const { return scheduler_->device().info(); }

 private:
  struct Read {
    IoRequest request;
    uint32_t fragments = 0;
    uint32_t vectors = 0;
    uint64_t end = 0;  // offset behind it
    std::array<uint64_t, kMaxFragments> tags;
    std::array<iovec, 2 * kMaxFragments> buffers;
  };

  WeightReader(const WeightReaderOptions& options, AlignedBuffer gaps);
  // Makes requests of sorted fragments while there are free ones and submits them; returns how many
  // fragments they took.
  size_t Submit(IoClass io_class, absl::Span<Fragment> fragments);
  // Whether the fragment may join the read, given what gaps may take.
  bool Joins(const Read& read, const Fragment& fragment, uint64_t gap_budget) const;
  void Add(Read& read, Fragment& fragment);
  void OnDone(absl::Span<IoRequest* const> done) ABSL_LOCKS_EXCLUDED(mu_);
  absl::Span<const Arrival> Collect();

  // Constant after Create.
  const WeightReaderOptions options_;
  const AlignedBuffer gaps_;  // what gaps hold goes here, from all reads at once; nobody looks

  // The caller's thread alone.
  std::vector<Read> reads_;
  std::vector<uint32_t> free_;
  std::vector<IoRequest*> batch_;
  std::vector<Fragment> backlog_;  // demand that found no free request
  size_t backlog_begin_ = 0;
  std::vector<IoRequest*> taken_;
  std::vector<Arrival> arrivals_;
  size_t under_way_ = 0;
  absl::Status last_error_;
  WeightReaderStats stats_;

  mutable absl::Mutex mu_;
  std::vector<IoRequest*> done_ ABSL_GUARDED_BY(mu_);
  size_t in_flight_ ABSL_GUARDED_BY(mu_) = 0;  // requests
  absl::Time busy_since_ ABSL_GUARDED_BY(mu_);
  absl::Duration busy_ ABSL_GUARDED_BY(mu_);

  std::unique_ptr<IoScheduler> scheduler_;  // last: its thread uses the above
};

}  // namespace terrace

#endif  // TERRACE_RUNTIME_WEIGHT_READER_H_
