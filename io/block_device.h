#ifndef TERRACE_IO_BLOCK_DEVICE_H_
#define TERRACE_IO_BLOCK_DEVICE_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "io/io_request.h"
#include "io/stripe_layout.h"

namespace terrace {

enum class IoEngine : uint8_t { kAuto, kIoUring, kThreads, kMemory };

// "auto", "io_uring", "threads", "memory".
const char* IoEngineName(IoEngine engine);
std::optional<IoEngine> ParseIoEngine(absl::string_view name);  // all but "memory"

// What an opened device turned out to be; constant after Open.
struct DeviceInfo {
  std::string path;
  std::vector<std::string> more_paths;  // of a device of several files
  StripeLayout layout;                  // which file holds what
  IoEngine engine = IoEngine::kMemory;
  std::string engine_reason;  // why this engine, as a phrase people can read
  std::string engine_setup;   // how it was set up: what the kernel granted of its fast paths
  bool direct_io = false;
  std::string direct_reason;  // why direct I/O is used or not
  uint64_t size_bytes = 0;
  size_t depth = 0;  // requests in the kernel at once; further ones wait inside the device
};

// Asynchronous, offset-addressed storage of a fixed size: the only way bytes reach a disk.
//
// A device belongs to one thread, the first that submits to or waits on it; only Wake may be called
// from elsewhere. Opening on one thread and handing the device to another before first use is fine.
// Destroying a device waits for what is in flight; with something in flight, only its own thread
// may destroy it.
class BlockDevice {
 public:
  virtual ~BlockDevice() = default;

  // Takes over a batch; see IoRequest for who owns what. Never completes a request or calls back
  // into the caller: outcomes come from Poll and Wait. Takes any number; at most `depth` are in the
  // kernel at once. A request beyond the end of the device or not page aligned comes back with
  // EINVAL.
  virtual void Submit(absl::Span<IoRequest* const> batch) = 0;

  // Stores finished requests into `done`, at most done.size(), and returns how many. Every
  // submitted request is returned exactly once, in any order. Does not block.
  virtual size_t Poll(absl::Span<IoRequest*> done) = 0;

  // Like Poll, but blocks until at least one request is finished or Wake was called. May return 0
  // only after Wake. With nothing in flight it blocks until Wake.
  virtual size_t Wait(absl::Span<IoRequest*> done) = 0;

  // Submit and then Wait, in one system call where the engine can. `done` may be the memory that
  // `batch` is in.
  virtual size_t SubmitAndWait(absl::Span<IoRequest* const> batch, absl::Span<IoRequest*> done);

  // Makes the current Wait, or else the next one, return early. Thread-safe. Several calls before
  // a Wait count as one.
  virtual void Wake() = 0;

  // Tells the kernel once about memory that many requests will use, so that it need not look up and
  // pin the pages of each. Requests that leave this memory work as before. Call it before the first
  // Submit; the memory must outlive the device. kUnimplemented where the engine has no use for it,
  // kResourceExhausted, with the limit, where the kernel will not lock as much; the device works
  // without it either way.
  virtual absl::Status RegisterBuffers(absl::Span<const iovec> buffers);

  // One more device on the same storage, for another thread: it shares the file and the lock of
  // this one, which must outlive it, but no queue. Unlike this one it may pass from thread to
  // thread whenever nothing is in flight on it. kUnimplemented where threads gain nothing by it.
  virtual absl::StatusOr<std::unique_ptr<BlockDevice>> Clone() const;

  // Gives the space of a range of whole pages back to the disk; a later write takes it again, and
  // may find the disk full then. The range reads as zeros from now on, but on a block device as
  // anything. Blocks, and survives power loss no sooner than a write would. Thread-safe, but
  // nothing may be in flight on this range. kUnimplemented where the filesystem or the disk cannot;
  // other errors name path, offset, length and errno text.
  virtual absl::Status Discard(uint64_t offset, uint64_t bytes);

  // Whether the files are still what was opened: kDataLoss, with the path and what happened to it,
  // when one was deleted, renamed, replaced or truncated meanwhile, which no request need notice.
  // Of a block device only that its path still leads to it. Costs two system calls a file; a
  // relative path starts where the process is now. Thread-safe.
  virtual absl::Status CheckFile() const;

  // Constant after Open, so thread-safe.
  virtual const DeviceInfo& info() const = 0;

  // What a request that came back means: OK, or path, operation, offset, length and errno text, and
  // for several files the offset in the one that failed.
  // kDataLoss for EIO and a premature end, kResourceExhausted for a full disk or quota,
  // kUnavailable when transient errors outlasted their retries, else kInternal.
  absl::Status StatusOf(const IoRequest& request) const;

 protected:
  // What every Submit does first with a request: forgets its last outcome and checks it against
  // info(). False when it is finished already, with EINVAL for a bad shape or OK for an empty
  // transfer, and must not reach the kernel.
  bool Admit(IoRequest& request) const;
  // kInvalidArgument unless the range lies on whole pages within the device.
  absl::Status CheckRange(uint64_t offset, uint64_t bytes) const;
};

struct FileDeviceOptions {
  std::string path;
  // More files, one on each of several disks: the device is all of them, in stripes that take
  // turns. They have one size, of whole stripes (of larger block devices the rest is not used); the
  // order must always be the same. A request that crosses into the next stripe does so when it is
  // done with the one before.
  std::vector<std::string> more_paths = {};
  uint64_t stripe_bytes = uint64_t{4} << 20;  // a multiple of kPageBytes
  // Size of the device, a multiple of kPageBytes, over all of its files. A smaller file is extended
  // and its space reserved on the disk where the filesystem can; a larger one is refused unless
  // `truncate`; a larger block device is fine. 0 takes the size the file has, rounded up to whole
  // pages; an incomplete last page reads as a premature end.
  uint64_t size_bytes = 0;
  // Make the file when absent, readable and writable by its owner only. A regular file that exists
  // and is ours becomes so as well.
  bool create = false;
  bool truncate = false;  // discard what it holds
  // Decides that in place of `truncate`, of one file that is not empty. Called under the lock that
  // the device will have, before anything changes, with a device that reads the file as it is and
  // with the bytes that the file has. An error refuses the file, which is left as it is.
  std::function<absl::StatusOr<bool>(BlockDevice& found, uint64_t found_bytes)> decide_truncate =
      {};
  bool cut_tail = false;   // a larger file loses what is behind size_bytes instead of being refused
  bool read_only = false;  // REQUIRES: none of create, truncate and cut_tail
  bool direct_io = true;   // fall back to the page cache where the filesystem refuses it
  IoEngine engine = IoEngine::kAuto;
  size_t depth = 64;  // 1 to 4096
};

// Opens regular files or block devices and locks them against other processes (flock; shared when
// read_only); what was removed or replaced before it was locked is opened anew. `kAuto` takes
// io_uring and falls back to threads where the kernel or a container forbids it; asking for
// io_uring by name fails with kUnavailable instead. Errors name the path and the errno text:
// kNotFound, kPermissionDenied, kResourceExhausted (not enough disk, with needed and available
// bytes), kUnavailable (locked by another process), kInvalidArgument.
absl::StatusOr<std::unique_ptr<BlockDevice>> OpenFileDevice(const FileDeviceOptions& options);

// Submits one batch and waits for all of it; the first error wins. For opening, recovery and tests;
// the device must be idle.
absl::Status RunBatch(BlockDevice& device, absl::Span<IoRequest* const> batch);

}  // namespace terrace

#endif  // TERRACE_IO_BLOCK_DEVICE_H_
