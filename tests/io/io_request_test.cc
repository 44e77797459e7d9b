#include "io/io_request.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <deque>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "io/aligned_buffer.h"

namespace terrace {
namespace {

// A request over `page_count` pages of memory, cut into randomly many buffers.
struct Shape {
  std::vector<std::byte> memory;  // buffers in device order, back to back
  std::vector<iovec> buffers;
  IoRequest request;
};

Shape MakeShape(std::mt19937_64& random, size_t page_count) {
  Shape shape;
  shape.memory.resize(page_count * kPageBytes);
  for (size_t page = 0; page < page_count;) {
    const size_t pages = std::uniform_int_distribution<size_t>(1, page_count - page)(random);
    const size_t taken = random() % 3 == 0 ? 1 : pages;
    shape.buffers.push_back({shape.memory.data() + page * kPageBytes, taken * kPageBytes});
    page += taken;
  }
  return shape;
}

// REQUIRES: `bytes` is whole words long.
void FillRandomly(std::mt19937_64& random, std::vector<std::byte>& bytes) {
  for (size_t i = 0; i < bytes.size(); i += sizeof(uint64_t)) {
    const uint64_t word = random();
    std::memcpy(bytes.data() + i, &word, sizeof(word));
  }
}

// The transfer as a list of buffers, whichever form it has.
std::vector<iovec> VectorsOf(const IoTransfer& transfer) {
  if (transfer.vectors.empty()) return {transfer.single};
  return {transfer.vectors.begin(), transfer.vectors.end()};
}

// Plays a kernel that moves some of the bytes that it is asked for, or none.
class UnreliableKernel {
 public:
  UnreliableKernel(std::mt19937_64& random, std::vector<std::byte>& disk)
      : random_(random), disk_(disk) {}

  int64_t Transfer(const IoRequest& request) {
    switch (random_() % 6) {
      case 0:
        return -EAGAIN;
      case 1:
        return -EINTR;
      default:
        return Move(request);
    }
  }

 private:
  int64_t Move(const IoRequest& request) {
    // As where the next stripe of a device of several files begins.
    const uint64_t limit = random_() % 2 == 0 ? UINT64_MAX : (1 + random_() % 8) * kPageBytes;
    const IoTransfer transfer = NextTransfer(request, limit);
    const std::vector<iovec> vectors = VectorsOf(transfer);
    uint64_t length = 0;
    for (const iovec& vector : vectors) length += vector.iov_len;
    EXPECT_GT(length, 0);
    EXPECT_LE(length, limit);
    const uint64_t granted =
        random_() % 4 == 0 ? length : std::uniform_int_distribution<uint64_t>(1, length)(random_);
    uint64_t moved = 0;
    for (const iovec& vector : vectors) {
      const uint64_t bytes = std::min<uint64_t>(vector.iov_len, granted - moved);
      std::byte* const on_disk = disk_.data() + transfer.offset + moved;
      if (request.op == IoOp::kRead) {
        std::memcpy(vector.iov_base, on_disk, bytes);
      } else {
        std::memcpy(on_disk, vector.iov_base, bytes);
      }
      moved += bytes;
    }
    return static_cast<int64_t>(moved);
  }

  std::mt19937_64& random_;
  std::vector<std::byte>& disk_;
};

TEST(IoRequest, ArrivesExactlyOnceThroughAnUnreliableKernel) {
  constexpr size_t kDiskPages = 96;
  for (uint64_t seed = 1; seed <= 300; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937_64 random(seed);
    std::vector<std::byte> disk(kDiskPages * kPageBytes);
    FillRandomly(random, disk);
    Shape shape = MakeShape(random, 1 + random() % 48);
    FillRandomly(random, shape.memory);
    IoRequest& request = shape.request;
    request.op = random() % 2 == 0 ? IoOp::kRead : IoOp::kWrite;
    request.buffers = shape.buffers;
    const size_t pages = shape.memory.size() / kPageBytes;
    request.offset = random() % (kDiskPages - pages + 1) * kPageBytes;

    std::vector<std::byte> expected_memory = shape.memory;
    std::vector<std::byte> expected_disk = disk;
    if (request.op == IoOp::kRead) {
      std::memcpy(expected_memory.data(), disk.data() + request.offset, expected_memory.size());
    } else {
      std::memcpy(expected_disk.data() + request.offset, shape.memory.data(), shape.memory.size());
    }

    UnreliableKernel kernel(random, disk);
    while (Advance(request, kernel.Transfer(request)) == IoStep::kResume) {
      ASSERT_TRUE(IsPageAligned(request.transferred));
      // Bad luck may not last longer than the retries here; giving up has its own tests.
      request.transient_retries = 0;
    }
    EXPECT_EQ(request.error, 0);
    EXPECT_EQ(request.transferred, request.length());
    EXPECT_TRUE(shape.memory == expected_memory);
    EXPECT_TRUE(disk == expected_disk);
  }
}

class IoRequestLife : public testing::Test {
 protected:
  IoRequestLife() : memory_(4 * kPageBytes) {
    buffers_ = {{memory_.data(), 3 * kPageBytes}, {memory_.data() + 3 * kPageBytes, kPageBytes}};
    request_.buffers = buffers_;
    request_.offset = 10 * kPageBytes;
  }

  // Feeds `result` until the request ends; returns how many system calls that took.
  int Exhaust(int64_t result) {
    int calls = 1;
    while (Advance(request_, result) == IoStep::kResume) ++calls;
    return calls;
  }

  std::vector<std::byte> memory_;
  std::vector<iovec> buffers_;
  IoRequest request_;
};

TEST_F(IoRequestLife, ShortTransferResumesAtTheLastWholePage) {
  ASSERT_EQ(Advance(request_, kPageBytes + 100), IoStep::kResume);
  EXPECT_EQ(request_.transferred, kPageBytes);
  const IoTransfer rest = NextTransfer(request_);
  EXPECT_EQ(rest.offset, 11 * kPageBytes);
  EXPECT_TRUE(rest.vectors.empty());
  EXPECT_EQ(rest.single.iov_base, memory_.data() + kPageBytes);
  EXPECT_EQ(rest.single.iov_len, 2 * kPageBytes);

  ASSERT_EQ(Advance(request_, 2 * kPageBytes), IoStep::kResume);
  const IoTransfer last = NextTransfer(request_);
  EXPECT_EQ(last.offset, 13 * kPageBytes);
  ASSERT_EQ(last.vectors.size(), 1u);
  EXPECT_EQ(last.vectors[0].iov_base, memory_.data() + 3 * kPageBytes);
  EXPECT_EQ(Advance(request_, kPageBytes), IoStep::kDone);
  EXPECT_EQ(request_.error, 0);
}

TEST_F(IoRequestLife, FirstTransferIsTheWholeRequest) {
  const IoTransfer transfer = NextTransfer(request_);
  EXPECT_EQ(transfer.offset, request_.offset);
  EXPECT_EQ(transfer.vectors.data(), buffers_.data());
  EXPECT_EQ(transfer.vectors.size(), 2u);
}

TEST_F(IoRequestLife, AnyLimitCutsWholeBuffersOrAPartOfOne) {
  const IoTransfer part = NextTransfer(request_, 2 * kPageBytes);
  EXPECT_TRUE(part.vectors.empty());
  EXPECT_EQ(part.single.iov_base, memory_.data());
  EXPECT_EQ(part.single.iov_len, 2 * kPageBytes);
  EXPECT_EQ(NextTransfer(request_, 3 * kPageBytes).vectors.size(), 1u);
  EXPECT_EQ(NextTransfer(request_, 4 * kPageBytes).vectors.size(), 2u);
}

TEST_F(IoRequestLife, SyncGoesThroughEveryFileUntilOneFails) {
  request_.op = IoOp::kSync;
  EXPECT_EQ(Advance(request_, 0, 3), IoStep::kResume);
  EXPECT_EQ(Advance(request_, -EINTR, 3), IoStep::kResume);
  EXPECT_EQ(request_.synced_files, 1u);
  EXPECT_EQ(Advance(request_, 0, 3), IoStep::kResume);
  EXPECT_EQ(Advance(request_, -EIO, 3), IoStep::kDone);
  EXPECT_EQ(request_.error, EIO);
  EXPECT_EQ(request_.synced_files, 2u);
  Reset(request_);
  for (int file = 0; file < 2; ++file) EXPECT_EQ(Advance(request_, 0, 3), IoStep::kResume);
  EXPECT_EQ(Advance(request_, 0, 3), IoStep::kDone);
  EXPECT_EQ(request_.error, 0);
}

TEST_F(IoRequestLife, TransientErrorsSurfaceOnceTheRetriesAreUsedUp) {
  for (const int error : {EAGAIN, EINTR}) {
    Reset(request_);
    EXPECT_EQ(Exhaust(-error), kMaxTransientRetries + 1);
    EXPECT_EQ(request_.error, error);
    EXPECT_EQ(request_.transferred, 0u);
  }
}

TEST_F(IoRequestLife, OtherErrorsSurfaceAtOnceAndKeepWhatArrived) {
  ASSERT_EQ(Advance(request_, kPageBytes), IoStep::kResume);
  EXPECT_EQ(Advance(request_, -EIO), IoStep::kDone);
  EXPECT_EQ(request_.error, EIO);
  EXPECT_EQ(request_.transferred, kPageBytes);
}

TEST_F(IoRequestLife, ReadingNothingIsTheEndOfTheDevice) {
  ASSERT_EQ(Advance(request_, 2 * kPageBytes), IoStep::kResume);
  EXPECT_EQ(Advance(request_, 0), IoStep::kDone);
  EXPECT_EQ(request_.error, ENODATA);
  EXPECT_EQ(request_.transferred, 2 * kPageBytes);
}

TEST_F(IoRequestLife, ReadingLessThanAPageForeverIsTheEndOfTheDevice) {
  EXPECT_EQ(Exhaust(100), kMaxTransientRetries + 1);
  EXPECT_EQ(request_.error, ENODATA);
}

TEST_F(IoRequestLife, WritingWithoutProgressForeverIsAnIoError) {
  request_.op = IoOp::kWrite;
  for (const int64_t moved : {0, 100}) {
    Reset(request_);
    EXPECT_EQ(Exhaust(moved), kMaxTransientRetries + 1);
    EXPECT_EQ(request_.error, EIO);
  }
}

TEST_F(IoRequestLife, SyncSucceedsWithZeroAndRetriesInterrupts) {
  request_.op = IoOp::kSync;
  request_.buffers = {};
  EXPECT_EQ(Advance(request_, -EINTR), IoStep::kResume);
  EXPECT_EQ(Advance(request_, 0), IoStep::kDone);
  EXPECT_EQ(request_.error, 0);
  EXPECT_EQ(Advance(request_, -EIO), IoStep::kDone);
  EXPECT_EQ(request_.error, EIO);
}

TEST_F(IoRequestLife, ResetForgetsTheOutcomeAndKeepsTheOrder) {
  Advance(request_, kPageBytes);
  Advance(request_, -EAGAIN);
  Advance(request_, -EIO);
  Reset(request_);
  EXPECT_EQ(request_.error, 0);
  EXPECT_EQ(request_.transferred, 0u);
  EXPECT_EQ(request_.transient_retries, 0);
  EXPECT_EQ(request_.offset, 10 * kPageBytes);
  EXPECT_EQ(request_.length(), 4 * kPageBytes);
}

TEST(IoRequestQueue, AgreesWithADequeUnderRandomUse) {
  const uint64_t seed = 20240611;
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  std::vector<IoRequest> requests(16);
  std::vector<IoRequest*> outside;
  for (IoRequest& request : requests) outside.push_back(&request);
  IoRequestQueue queue;
  std::deque<IoRequest*> model;
  for (int step = 0; step < 20000; ++step) {
    const uint64_t choice = random() % 5;
    if (choice < 2 && !outside.empty()) {
      queue.PushBack(outside.back());
      model.push_back(outside.back());
      outside.pop_back();
    } else if (choice < 4 && !model.empty()) {
      const auto victim = model.begin() + static_cast<ptrdiff_t>(random() % model.size());
      queue.Remove(*victim);
      outside.push_back(*victim);
      model.erase(victim);
    } else {
      IoRequest* const expected = model.empty() ? nullptr : model.front();
      ASSERT_EQ(queue.PopFront(), expected);
      if (expected == nullptr) continue;
      outside.push_back(expected);
      model.pop_front();
    }
    ASSERT_EQ(queue.size(), model.size());
    ASSERT_EQ(queue.empty(), model.empty());
  }
}

}  // namespace
}  // namespace terrace
