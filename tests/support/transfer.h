#ifndef TERRACE_TESTS_SUPPORT_TRANSFER_H_
#define TERRACE_TESTS_SUPPORT_TRANSFER_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "io/aligned_buffer.h"
#include "io/io_request.h"

namespace terrace {

// One request with memory of its own, cut into buffers. Thread-compatible.
class Transfer {
 public:
  Transfer(IoOp op, uint64_t offset, size_t bytes) : memory_(*AlignedBuffer::Create(bytes)) {
    request_.op = op;
    request_.offset = offset;
    buffers_ = {{memory_.data(), bytes}};
    request_.buffers = buffers_;
    request_.context = this;
  }
  Transfer(const Transfer&) = delete;
  Transfer& operator=(const Transfer&) = delete;

  // Deals the pages out to buffers of random sizes that lie in memory in random order.
  void Scatter(std::mt19937_64& random) {
    buffers_.clear();
    for (size_t start = 0; start < memory_.size();) {
      const size_t pages = 1 + random() % std::min<size_t>(9, PagesAfter(start));
      buffers_.push_back({memory_.data() + start, pages * kPageBytes});
      start += pages * kPageBytes;
    }
    std::shuffle(buffers_.begin(), buffers_.end(), random);
    request_.buffers = buffers_;
  }
  // Copies what the buffers hold, in device order, to `bytes`.
  void Gather(std::byte* bytes) const {
    for (const iovec& buffer : buffers_) {
      std::memcpy(bytes, buffer.iov_base, buffer.iov_len);
      bytes += buffer.iov_len;
    }
  }
  void Fill(std::mt19937_64& random) {
    for (size_t i = 0; i < memory_.size(); i += sizeof(uint64_t)) {
      const uint64_t word = random();
      std::memcpy(memory_.data() + i, &word, sizeof(word));
    }
  }

  IoRequest* request() { return &request_; }
  AlignedBuffer& memory() { return memory_; }
  std::vector<iovec>& buffers() { return buffers_; }

 private:
  size_t PagesAfter(size_t start) const { return (memory_.size() - start) / kPageBytes; }

  AlignedBuffer memory_;
  std::vector<iovec> buffers_;
  IoRequest request_;
};

}  // namespace terrace

#endif  // TERRACE_TESTS_SUPPORT_TRANSFER_H_
