#include "io/block_device.h"

#include <array>
#include <cerrno>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "io/aligned_buffer.h"
#include "io/check.h"

namespace terrace {
namespace {

absl::StatusCode CodeOf(int error) {
  switch (error) {
    case EIO:
    case ENODATA:
      return absl::StatusCode::kDataLoss;
    case ENOSPC:
    case EDQUOT:
      return absl::StatusCode::kResourceExhausted;
    case EAGAIN:
    case EINTR:
      return absl::StatusCode::kUnavailable;
    default:
      return absl::StatusCode::kInternal;
  }
}

std::string ErrorText(int error) {
  if (error == ENODATA) return "premature end of the device";
  return std::generic_category().message(error);
}

// Whether the request lies on whole pages, in the device and in memory, and within the device.
bool FitsDevice(const IoRequest& request, uint64_t device_bytes) {
  if (!IsPageAligned(request.offset) || request.offset > device_bytes) return false;
  if (request.buffers.size() > IoRequest::kMaxBuffers) return false;
  // Taking each buffer from what is left cannot overflow, which a sum of lengths could.
  uint64_t left = device_bytes - request.offset;
  for (const iovec& buffer : request.buffers) {
    if (!IsPageAligned(reinterpret_cast<uintptr_t>(buffer.iov_base))) return false;
    if (!IsPageAligned(buffer.iov_len) || buffer.iov_len > left) return false;
    left -= buffer.iov_len;
  }
  return true;
}

}  // namespace

const char* IoEngineName(IoEngine engine) {
  switch (engine) {
    case IoEngine::kAuto:
      return "auto";
    case IoEngine::kIoUring:
      return "io_uring";
    case IoEngine::kThreads:
      return "threads";
    case IoEngine::kMemory:
      return "memory";
  }
  return "unknown";
}

std::optional<IoEngine> ParseIoEngine(absl::string_view name) {
  for (const IoEngine engine : {IoEngine::kAuto, IoEngine::kIoUring, IoEngine::kThreads}) {
    if (name == IoEngineName(engine)) return engine;
  }
  return std::nullopt;
}

size_t BlockDevice::SubmitAndWait(absl::Span<IoRequest* const> batch, absl::Span<IoRequest*> done) {
  Submit(batch);
  return Wait(done);
}

absl::Status BlockDevice::RegisterBuffers(absl::Span<const iovec>) {
  return absl::UnimplementedError(
      absl::StrCat(IoEngineName(info().engine), " gains nothing from registered buffers"));
}

absl::StatusOr<std::unique_ptr<BlockDevice>> BlockDevice::Clone() const {
  return absl::UnimplementedError(
      absl::StrCat(IoEngineName(info().engine), " has no second queue on the same storage"));
}

absl::Status BlockDevice::Discard(uint64_t, uint64_t) {
  return absl::UnimplementedError(absl::StrCat(info().path, ": discard is not supported"));
}

absl::Status BlockDevice::CheckFile() const { return absl::OkStatus(); }

absl::Status BlockDevice::StatusOf(const IoRequest& request) const {
  if (request.error == 0) return absl::OkStatus();
  const bool sync = request.op == IoOp::kSync;
  const StripeLayout::Extent place = info().layout.Locate(request.offset + request.transferred);
  const size_t file = sync ? request.synced_files : place.file;
  const std::string& path = file == 0 ? info().path : info().more_paths[file - 1];
  if (sync) {
    return absl::Status(CodeOf(request.error),
                        absl::StrCat(path, ": sync: ", ErrorText(request.error)));
  }
  const std::string in_file =
      info().layout.file_count == 1
          ? ""
          : absl::StrCat(" of the device, at ", place.offset, " in this file");
  return absl::Status(
      CodeOf(request.error),
      absl::StrCat(path, ": ", IoOpName(request.op), " of ", request.length(), " bytes at offset ",
                   request.offset, in_file, ": ", ErrorText(request.error), " after ",
                   request.transferred, " bytes"));
}

bool BlockDevice::Admit(IoRequest& request) const {
  Reset(request);
  if (request.op == IoOp::kSync) {
    if (!request.buffers.empty()) request.error = EINVAL;
    return request.error == 0;
  }
  if (!FitsDevice(request, info().size_bytes)) {
    request.error = EINVAL;
    return false;
  }
  return request.length() > 0;
}

absl::Status BlockDevice::CheckRange(uint64_t offset, uint64_t bytes) const {
  const uint64_t size_bytes = info().size_bytes;
  if (IsPageAligned(offset) && IsPageAligned(bytes) && offset <= size_bytes &&
      bytes <= size_bytes - offset) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat(info().path, ": discard of ", bytes, " bytes at offset ", offset,
                   ": is not on whole pages within the ", size_bytes, " bytes of the device"));
}

absl::Status RunBatch(BlockDevice& device, absl::Span<IoRequest* const> batch) {
  std::array<IoRequest*, 64> done;
  absl::Span<IoRequest* const> unsubmitted = batch;
  for (size_t left = batch.size(); left > 0;) {
    const size_t count = device.SubmitAndWait(unsubmitted, absl::MakeSpan(done));
    TERRACE_CHECK(count <= left);  // else the device was not idle
    left -= count;
    unsubmitted = {};
  }
  for (const IoRequest* request : batch) {
    if (request->error != 0) return device.StatusOf(*request);
  }
  return absl::OkStatus();
}

}  // namespace terrace
