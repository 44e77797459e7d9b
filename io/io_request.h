#ifndef TERRACE_IO_IO_REQUEST_H_
#define TERRACE_IO_IO_REQUEST_H_

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <limits>

#include "absl/types/span.h"

namespace terrace {

enum class IoOp : uint8_t {
  kRead,
  kWrite,
  // Makes every write that completed before this request was submitted survive power loss.
  kSync,
};

const char* IoOpName(IoOp op);

// One transfer between memory and a BlockDevice.
//
// The submitter owns the request, its `buffers` array and the memory that it describes, and keeps
// all three alive and unmoved from Submit until the device hands the request back. In between the
// request belongs to the device; neither side allocates. A request may be submitted again once it
// came back, which forgets the last outcome.
struct IoRequest {
  // --- Set by the submitter ---
  IoOp op = IoOp::kRead;
  // Bytes from the start of the device; a multiple of kPageBytes.
  uint64_t offset = 0;
  // What to fill or write, in device order; every base and length a multiple of kPageBytes, at most
  // kMaxBuffers entries. Empty for kSync.
  absl::Span<const iovec> buffers;
  // Free for the submitter; devices never look at it.
  void* context = nullptr;

  // --- Set by the device before it hands the request back ---
  // 0 when every byte was transferred, else an errno. A transfer that hit the end of the device is
  // ENODATA.
  int error = 0;
  // Bytes transferred so far; the whole length when `error` is 0.
  uint64_t transferred = 0;

  // --- Owned by the device or scheduler that holds the request ---
  int transient_retries = 0;
  size_t synced_files = 0;  // of a kSync
  IoRequest* next = nullptr;
  IoRequest* previous = nullptr;
  uint8_t queue = 0;         // the scheduler's; devices leave it alone
  int64_t submitted_ns = 0;  // to the device, by Timeline::Now(); where there is a timeline

  static constexpr size_t kMaxBuffers = 1024;  // IOV_MAX

  uint64_t length() const {
    uint64_t bytes = 0;
    for (const iovec& buffer : buffers) bytes += buffer.iov_len;
    return bytes;
  }
};

// System calls without progress that one request survives before they surface as its error.
inline constexpr int kMaxTransientRetries = 64;

enum class IoStep : uint8_t {
  kDone,    // request.error and request.transferred are final
  kResume,  // issue NextTransfer(request) again
};

// The life of a request, shared by every device: digests the raw result of one system call (bytes
// moved, or -errno) and says what comes next. A short transfer resumes at the last whole page that
// arrived, because direct I/O cannot start anywhere else. What gains no page (EAGAIN, EINTR, a
// short transfer of less than one) resumes a bounded number of times; then the errno surfaces, for
// short transfers ENODATA when reading and EIO when writing. Reading 0 bytes is the end of the
// device. A kSync resumes until each of `file_count` files was synced. REQUIRES: `result` is at
// most what NextTransfer described.
IoStep Advance(IoRequest& request, int64_t result, size_t file_count = 1);

// Forgets the outcome of an earlier submission. Devices do so in Submit.
void Reset(IoRequest& request);

// The part of a request that comes next, as one system call can express it: either a part of one
// buffer, or a run of whole ones.
struct IoTransfer {
  uint64_t offset = 0;
  // Used when `vectors` is empty.
  iovec single = {nullptr, 0};
  absl::Span<const iovec> vectors;
};
// At most `max_bytes` of it. REQUIRES: max_bytes > 0.
IoTransfer NextTransfer(const IoRequest& request,
                        uint64_t max_bytes = std::numeric_limits<uint64_t>::max());

// An intrusive first-in first-out list of requests. It never allocates, so it is bounded by the
// requests its users own. A request is in at most one queue. Thread-compatible.
class IoRequestQueue {
 public:
  bool empty() const { return head_ == nullptr; }
  size_t size() const { return size_; }
  IoRequest* front() const { return head_; }  // nullptr when empty
  void PushBack(IoRequest* request);
  IoRequest* PopFront();  // nullptr when empty
  void Remove(IoRequest* request);

 private:
  IoRequest* head_ = nullptr;
  IoRequest* tail_ = nullptr;
  size_t size_ = 0;
};

}  // namespace terrace

#endif  // TERRACE_IO_IO_REQUEST_H_
