#include "io/uring_device.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "io/check.h"

namespace terrace {
namespace {

// An entry holds its length in 32 bits. What is longer goes in several transfers.
constexpr size_t kMaxTransferBytes = size_t{1} << 30;
// Requests of the first portion of a batch that finds the device idle, and how portions grow.
constexpr size_t kFirstPortion = 1;
constexpr size_t kPortionGrowth = 4;
// The kernel registers no larger buffer.
constexpr size_t kMaxPinnedBytes = size_t{1} << 30;

absl::Status Unavailable(absl::string_view call, int error) {
  return absl::UnavailableError(absl::StrCat(call, ": ", std::generic_category().message(error)));
}

// Whether the kernel was short of memory, of ring space or was interrupted: states that pass. Any
// other refusal means that the engine broke a rule of the ring.
bool IsTransient(int result) {
  return result == -EAGAIN || result == -EBUSY || result == -EINTR || result == -ENOMEM;
}

struct RingMode {
  unsigned flags;
  const char* name;
};

// From the fastest on. TASKRUN_FLAG tells a Poll without a system call that completions are there
// to be run.
constexpr std::array<RingMode, 3> kModes = {{
    {IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
     "single issuer, deferred completions"},
    {IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG, "cooperative completions"},
    {0, "plain ring"},
}};

// Sets up a disabled ring in the first mode from `first` on that this kernel knows; `mode` says
// which. Returns 0 or -errno.
int SetUpRing(unsigned entries, size_t first, io_uring& ring, size_t& mode) {
  int result = -EINVAL;
  for (mode = first; mode < kModes.size(); ++mode) {
    io_uring_params params = {};
    params.flags = kModes[mode].flags | IORING_SETUP_R_DISABLED;
    result = io_uring_queue_init_params(entries, &ring, &params);
    if (result != -EINVAL) break;
  }
  return result;
}

// Binds the ring to the calling thread. The shared library of liburing 2.3 forgot to export the
// function of this name. Returns 0 or -errno.
int EnableRing(io_uring& ring) {
  return io_uring_register(static_cast<unsigned>(ring.ring_fd), IORING_REGISTER_ENABLE_RINGS,
                           nullptr, 0);
}

// Runs one empty operation through `ring` and looks for the operations that the engine needs.
absl::Status TryOut(io_uring& ring) {
  if (const int result = EnableRing(ring); result < 0) {
    return Unavailable("io_uring_register", -result);
  }
  io_uring_prep_nop(io_uring_get_sqe(&ring));
  int result = 0;
  do {
    result = io_uring_submit_and_wait(&ring, 1);
  } while (result == -EINTR);
  if (result < 0) return Unavailable("io_uring_enter", -result);
  const std::unique_ptr<io_uring_probe, decltype(&io_uring_free_probe)> probe(
      io_uring_get_probe_ring(&ring), io_uring_free_probe);
  if (probe == nullptr) return Unavailable("io_uring_register", ENOSYS);
  for (const int operation :
       {IORING_OP_READ, IORING_OP_WRITE, IORING_OP_READV, IORING_OP_WRITEV, IORING_OP_READ_FIXED,
        IORING_OP_WRITE_FIXED, IORING_OP_FSYNC, IORING_OP_POLL_ADD}) {
    if (!io_uring_opcode_supported(probe.get(), operation)) {
      return absl::UnavailableError(absl::StrCat("io_uring operation ", operation, " is missing"));
    }
  }
  return absl::OkStatus();
}

// A filter may forbid any of the system calls, and a device is enabled only when it is first used,
// where it can no longer fall back. So a ring of its own tries all of them at open.
absl::Status TryKernel() {
  io_uring ring;
  size_t mode = 0;
  if (const int result = SetUpRing(1, /*first=*/0, ring, mode); result < 0) {
    return Unavailable("io_uring_setup", -result);
  }
  const absl::Status status = TryOut(ring);
  io_uring_queue_exit(&ring);
  return status;
}

}  // namespace

absl::StatusOr<std::unique_ptr<BlockDevice>> UringDevice::Create(std::vector<DeviceFile>& files,
                                                                 DeviceInfo info) {
  if (absl::Status status = TryKernel(); !status.ok()) return status;
  return Make(files, std::move(info), Role::kOwner);
}

absl::StatusOr<std::unique_ptr<BlockDevice>> UringDevice::Clone() const {
  // A duplicate shares the open file, and so the lock and the flags.
  std::vector<DeviceFile> files;
  for (const DeviceFile& file : files_) {
    UniqueFd fd(::fcntl(file.fd.get(), F_DUPFD_CLOEXEC, 0));
    if (!fd.valid()) return Unavailable("fcntl", errno);
    files.push_back({.path = file.path,
                     .fd = std::move(fd),
                     .regular = file.regular,
                     .volume = file.volume,
                     .number = file.number,
                     .needed_bytes = file.needed_bytes});
  }
  return Make(files, info_, Role::kClone);
}

absl::Status UringDevice::Discard(uint64_t offset, uint64_t bytes) {
  absl::Status status = CheckRange(offset, bytes);
  return status.ok() ? DiscardRange(files_, info_.layout, offset, bytes) : status;
}

absl::StatusOr<std::unique_ptr<UringDevice>> UringDevice::Make(std::vector<DeviceFile>& files,
                                                               DeviceInfo info, Role role) {
  UniqueFd wake_fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake_fd.valid()) return Unavailable("eventfd", errno);

  io_uring ring;
  size_t mode = 0;
  const size_t first_mode = role == Role::kOwner ? 0 : 1;
  // One entry more for the poll on the eventfd. The kernel gives the completion ring twice as many.
  const int result = SetUpRing(static_cast<unsigned>(info.depth) + 1, first_mode, ring, mode);
  if (result < 0) return Unavailable("io_uring_setup", -result);
  std::unique_ptr<UringDevice> device(new UringDevice(std::move(wake_fd), std::move(info), role));
  device->ring_ = ring;
  device->files_ = std::move(files);
  // A registered file spares a lookup per request; a plain descriptor does as well. The ring's own
  // descriptor stays unregistered: that registration belongs to a thread, and a device destroyed by
  // another thread would cancel the one of another ring there.
  std::vector<int> numbers;
  for (const DeviceFile& file : device->files_) numbers.push_back(file.fd.get());
  const auto count = static_cast<unsigned>(numbers.size());
  device->fixed_files_ = io_uring_register_files(&device->ring_, numbers.data(), count) == 0;
  device->info_.engine_setup = absl::StrCat(kModes[mode].name, !device->fixed_files_ ? ""
                                                               : count == 1 ? ", registered file"
                                                                            : ", registered files");
  return device;
}

UringDevice::UringDevice(UniqueFd wake_fd, DeviceInfo info, Role role)
    : wake_fd_(std::move(wake_fd)), info_(std::move(info)), role_(role) {
  info_.engine = IoEngine::kIoUring;
}

UringDevice::~UringDevice() {
  std::array<IoRequest*, 64> done;
  while (in_kernel_ > 0 || !queue_.empty()) UringDevice::Wait(absl::MakeSpan(done));
  // The kernel takes a ring apart in the background and holds the file until then, and with the
  // file the lock that OpenFileDevice took. Whoever opens the file next must not find it.
  for (const DeviceFile& file : files_) {
    if (role_ == Role::kOwner) ::flock(file.fd.get(), LOCK_UN);
  }
  io_uring_queue_exit(&ring_);
}

absl::Status UringDevice::RegisterBuffers(absl::Span<const iovec> buffers) {
  TERRACE_CHECK(!enabled_ && pinned_.empty());
  std::vector<iovec> pieces;
  std::vector<PinnedRange> ranges;
  for (const iovec& buffer : buffers) {
    std::byte* const base = static_cast<std::byte*>(buffer.iov_base);
    for (size_t done = 0; done < buffer.iov_len; done += kMaxPinnedBytes) {
      const size_t bytes = std::min(kMaxPinnedBytes, buffer.iov_len - done);
      pieces.push_back({base + done, bytes});
      ranges.push_back({base + done, base + done + bytes});
    }
  }
  if (pieces.empty()) return absl::OkStatus();
  const int result =
      io_uring_register_buffers(&ring_, pieces.data(), static_cast<unsigned>(pieces.size()));
  if (result == -ENOMEM) {
    rlimit limit = {};
    ::getrlimit(RLIMIT_MEMLOCK, &limit);
    return absl::ResourceExhaustedError(absl::StrCat(
        "io_uring_register_buffers: the limit on locked memory is ", limit.rlim_cur, " bytes"));
  }
  if (result < 0) return Unavailable("io_uring_register_buffers", -result);
  pinned_ = std::move(ranges);
  absl::StrAppend(&info_.engine_setup, ", registered buffers");
  return absl::OkStatus();
}

int UringDevice::PinnedIndex(const void* base, size_t bytes) const {
  const std::byte* const begin = static_cast<const std::byte*>(base);
  for (size_t i = 0; i < pinned_.size(); ++i) {
    if (begin >= pinned_[i].begin && begin + bytes <= pinned_[i].end) return static_cast<int>(i);
  }
  return -1;
}

void UringDevice::Submit(absl::Span<IoRequest* const> batch) {
  Accept(batch);
  Flush();
}

size_t UringDevice::SubmitAndWait(absl::Span<IoRequest* const> batch, absl::Span<IoRequest*> done) {
  Accept(batch);
  if (io_uring_sq_ready(&ring_) > 0 && finished_.empty() && !woken_) {
    ArmWake();
    FlushAndWait();
  }
  return Wait(done);
}

void UringDevice::Accept(absl::Span<IoRequest* const> batch) {
  Enable();
  for (IoRequest* request : batch) (Admit(*request) ? queue_ : finished_).PushBack(request);
  // The kernel holds back what comes with one system call until it has prepared all of it. An idle
  // device gets one request at once, and more and more while it works on those before.
  size_t portion = in_kernel_ == 0 ? kFirstPortion : info_.depth;
  while (TopUp(portion)) {
    Flush();
    portion *= kPortionGrowth;
  }
}

size_t UringDevice::Poll(absl::Span<IoRequest*> done) {
  Enable();
  const size_t count = Reap(done);
  TopUp(info_.depth);
  Flush();
  return count;
}

size_t UringDevice::Wait(absl::Span<IoRequest*> done) {
  TERRACE_CHECK(!done.empty());
  Enable();
  for (;;) {
    const size_t count = Reap(done);
    TopUp(info_.depth);
    if (count > 0 || woken_) {
      woken_ = false;
      Flush();
      return count;
    }
    ArmWake();
    FlushAndWait();
  }
}

void UringDevice::Wake() {
  const uint64_t one = 1;
  // Fails only when the counter is full, and then the device is woken already.
  const ssize_t written = ::write(wake_fd_.get(), &one, sizeof(one));
  TERRACE_CHECK(written == sizeof(one) || errno == EAGAIN);
}

void UringDevice::Enable() {
  if (enabled_) return;
  TERRACE_CHECK_EQ(EnableRing(ring_), 0);
  enabled_ = true;
}

bool UringDevice::TopUp(size_t limit) {
  for (size_t count = 0; in_kernel_ < info_.depth && !queue_.empty(); ++count) {
    if (count == limit) return true;
    ++in_kernel_;
    Prepare(*queue_.PopFront());
  }
  return false;
}

void UringDevice::Prepare(IoRequest& request) {
  io_uring_sqe* const entry = io_uring_get_sqe(&ring_);
  TERRACE_CHECK(entry != nullptr);
  if (request.op == IoOp::kSync) {
    io_uring_prep_fsync(entry, FileOf(request.synced_files), IORING_FSYNC_DATASYNC);
  } else {
    PrepareTransfer(request, entry);
  }
  if (fixed_files_) io_uring_sqe_set_flags(entry, IOSQE_FIXED_FILE);
  io_uring_sqe_set_data(entry, &request);
}

void UringDevice::PrepareTransfer(const IoRequest& request, io_uring_sqe* entry) {
  const StripeLayout::Extent place = info_.layout.Locate(request.offset + request.transferred);
  const IoTransfer transfer = NextTransfer(request, place.bytes);
  const int file = FileOf(place.file);
  const bool reading = request.op == IoOp::kRead;
  if (transfer.vectors.size() > 1) {
    // The vectors are the submitter's own and outlive the request in the kernel.
    const unsigned count = static_cast<unsigned>(transfer.vectors.size());
    const auto prepare = reading ? io_uring_prep_readv : io_uring_prep_writev;
    prepare(entry, file, transfer.vectors.data(), count, place.offset);
    return;
  }
  const iovec& buffer = transfer.vectors.empty() ? transfer.single : transfer.vectors.front();
  const unsigned bytes = static_cast<unsigned>(std::min(buffer.iov_len, kMaxTransferBytes));
  const int pinned = PinnedIndex(buffer.iov_base, bytes);
  if (pinned >= 0) {
    if (reading) {
      io_uring_prep_read_fixed(entry, file, buffer.iov_base, bytes, place.offset, pinned);
    } else {
      io_uring_prep_write_fixed(entry, file, buffer.iov_base, bytes, place.offset, pinned);
    }
  } else if (reading) {
    io_uring_prep_read(entry, file, buffer.iov_base, bytes, place.offset);
  } else {
    io_uring_prep_write(entry, file, buffer.iov_base, bytes, place.offset);
  }
}

void UringDevice::ArmWake() {
  if (wake_armed_) return;
  io_uring_sqe* const entry = io_uring_get_sqe(&ring_);
  TERRACE_CHECK(entry != nullptr);
  // A poll, unlike a read, leaves the kernel no pointer into this object.
  io_uring_prep_poll_add(entry, wake_fd_.get(), POLLIN);
  io_uring_sqe_set_data(entry, nullptr);
  wake_armed_ = true;
}

void UringDevice::Flush() {
  while (io_uring_sq_ready(&ring_) > 0) {
    const int result = io_uring_submit(&ring_);
    if (result > 0 || result == -EINTR) continue;
    TERRACE_CHECK(result == 0 || IsTransient(result));
    return;
  }
}

void UringDevice::FlushAndWait() {
  const int result = io_uring_submit_and_wait(&ring_, 1);
  if (result >= 0 || result == -EINTR) return;
  TERRACE_CHECK(IsTransient(result));
  // The shortage may last, and nothing says when it ends.
  std::this_thread::yield();
}

size_t UringDevice::Reap(absl::Span<IoRequest*> done) {
  size_t count = 0;
  while (count < done.size() && !finished_.empty()) done[count++] = finished_.PopFront();
  std::array<io_uring_cqe*, 64> completions;
  while (count < done.size()) {
    const size_t room = std::min(completions.size(), done.size() - count);
    const unsigned reaped =
        io_uring_peek_batch_cqe(&ring_, completions.data(), static_cast<unsigned>(room));
    if (reaped == 0) break;
    for (unsigned i = 0; i < reaped; ++i) {
      IoRequest* const request = Digest(*completions[i]);
      if (request != nullptr) done[count++] = request;
    }
    io_uring_cq_advance(&ring_, reaped);
  }
  return count;
}

IoRequest* UringDevice::Digest(const io_uring_cqe& completion) {
  IoRequest* const request = static_cast<IoRequest*>(io_uring_cqe_get_data(&completion));
  if (request == nullptr) {
    wake_armed_ = false;
    // A failed poll is no Wake; it is armed again. The counter stays set until it is read.
    uint64_t wakes = 0;
    if (::read(wake_fd_.get(), &wakes, sizeof(wakes)) == sizeof(wakes)) woken_ = true;
    return nullptr;
  }
  if (Advance(*request, completion.res, files_.size()) == IoStep::kResume) {
    Prepare(*request);
    return nullptr;
  }
  --in_kernel_;
  return request;
}

}  // namespace terrace
