#include "io/io_request.h"

#include <algorithm>
#include <cerrno>

#include "io/aligned_buffer.h"
#include "io/check.h"

namespace terrace {
namespace {

IoStep Finish(IoRequest& request, int error) {
  request.error = error;
  return IoStep::kDone;
}

// One more try, or `error` once they are used up.
IoStep Retry(IoRequest& request, int error) {
  if (request.transient_retries == kMaxTransientRetries) return Finish(request, error);
  ++request.transient_retries;
  return IoStep::kResume;
}

}  // namespace

const char* IoOpName(IoOp op) {
  switch (op) {
    case IoOp::kRead:
      return "read";
    case IoOp::kWrite:
      return "write";
    case IoOp::kSync:
      return "sync";
  }
  return "unknown";
}

IoStep Advance(IoRequest& request, int64_t result, size_t file_count) {
  if (result < 0) {
    const int error = static_cast<int>(-result);
    return error == EAGAIN || error == EINTR ? Retry(request, error) : Finish(request, error);
  }
  if (request.op == IoOp::kSync) {
    return ++request.synced_files < file_count ? IoStep::kResume : Finish(request, 0);
  }

  const uint64_t length = request.length();
  const uint64_t arrived = request.transferred + static_cast<uint64_t>(result);
  TERRACE_CHECK(arrived <= length);  // else the device wrote past the buffers
  if (arrived == length) {
    request.transferred = length;
    return Finish(request, 0);
  }
  // A device that has no more bytes says so by reading 0 of them. A write has no such end: one that
  // moves nothing without an error is a hiccup, and EIO if it keeps happening.
  const bool reading = request.op == IoOp::kRead;
  if (reading && result == 0) return Finish(request, ENODATA);

  const uint64_t whole_pages = arrived / kPageBytes * kPageBytes;
  const bool progress = whole_pages > request.transferred;
  request.transferred = whole_pages;
  if (progress) return IoStep::kResume;
  // Less than a page, again and again, is the ragged end of a file.
  return Retry(request, reading ? ENODATA : EIO);
}

void Reset(IoRequest& request) {
  request.error = 0;
  request.transferred = 0;
  request.transient_retries = 0;
  request.synced_files = 0;
}

IoTransfer NextTransfer(const IoRequest& request, uint64_t max_bytes) {
  IoTransfer transfer;
  transfer.offset = request.offset + request.transferred;
  uint64_t skip = request.transferred;
  size_t index = 0;
  while (index < request.buffers.size() && skip >= request.buffers[index].iov_len) {
    skip -= request.buffers[index].iov_len;
    ++index;
  }
  const absl::Span<const iovec> left = request.buffers.subspan(index);
  if (skip == 0 && max_bytes == std::numeric_limits<uint64_t>::max()) {
    transfer.vectors = left;
    return transfer;
  }
  size_t whole = 0;
  for (uint64_t bytes = 0; skip == 0 && whole < left.size(); ++whole) {
    bytes += left[whole].iov_len;
    if (bytes > max_bytes) break;
  }
  if (whole > 0) {
    transfer.vectors = left.first(whole);
    return transfer;
  }
  TERRACE_CHECK(!left.empty());
  transfer.single = {static_cast<std::byte*>(left.front().iov_base) + skip,
                     std::min<uint64_t>(left.front().iov_len - skip, max_bytes)};
  return transfer;
}

void IoRequestQueue::PushBack(IoRequest* request) {
  request->next = nullptr;
  request->previous = tail_;
  (tail_ == nullptr ? head_ : tail_->next) = request;
  tail_ = request;
  ++size_;
}

IoRequest* IoRequestQueue::PopFront() {
  IoRequest* const front = head_;
  if (front != nullptr) Remove(front);
  return front;
}

void IoRequestQueue::Remove(IoRequest* request) {
  TERRACE_CHECK(size_ > 0);
  (request->previous == nullptr ? head_ : request->previous->next) = request->next;
  (request->next == nullptr ? tail_ : request->next->previous) = request->previous;
  request->next = nullptr;
  request->previous = nullptr;
  --size_;
}

}  // namespace terrace
