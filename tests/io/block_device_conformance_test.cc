#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "io/aligned_buffer.h"
#include "io/block_device.h"
#include "io/memory_device.h"
#include "tests/support/faulty_device.h"
#include "tests/support/power_cut_device.h"
#include "tests/support/temp_dir.h"
#include "tests/support/transfer.h"

namespace terrace {
namespace {

using testing::HasSubstr;

// What stands in for a device in tests keeps to the same rules.
enum class TestDouble : uint8_t { kNone, kFaulty, kPowerCut };

struct Case {
  const char* name;
  IoEngine engine;
  bool direct_io = false;
  const char* parent = "";  // of the directory with the file
  bool striped = false;     // over two files, a page each in turn
  TestDouble test_double = TestDouble::kNone;
};

void PrintTo(const Case& which, std::ostream* out) { *out << which.name; }

class BlockDeviceTest : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (GetParam().engine == IoEngine::kMemory) return;
    if (*GetParam().parent != '\0' && ::access(GetParam().parent, W_OK) != 0) {
      GTEST_SKIP() << GetParam().parent << " is not there";
    }
    dir_ = std::make_unique<TempDir>(GetParam().parent);
    absl::StatusOr<std::unique_ptr<BlockDevice>> trial = OpenAt("trial", 2 * kPageBytes, 1);
    if (GetParam().engine == IoEngine::kIoUring &&
        trial.status().code() == absl::StatusCode::kUnavailable) {
      GTEST_SKIP() << trial.status();
    }
    ASSERT_TRUE(trial.ok()) << trial.status();
    if (GetParam().direct_io && !(*trial)->info().direct_io) {
      GTEST_SKIP() << "no direct I/O: " << (*trial)->info().direct_reason;
    }
  }

  absl::StatusOr<std::unique_ptr<BlockDevice>> OpenAt(const std::string& name, uint64_t size_bytes,
                                                      size_t depth) {
    if (GetParam().test_double == TestDouble::kPowerCut) {
      const PowerCutDiskOptions disk = {.size_bytes = size_bytes, .seed = 1};
      return std::make_unique<PowerCutDevice>(std::make_shared<PowerCutDisk>(disk), depth);
    }
    if (GetParam().test_double == TestDouble::kFaulty) {
      return std::make_unique<FaultyDevice>(*MemoryDevice::Create({size_bytes, depth, nullptr}),
                                            /*seed=*/1);
    }
    if (GetParam().engine == IoEngine::kMemory) {
      return MemoryDevice::Create({size_bytes, depth, nullptr});
    }
    FileDeviceOptions options;
    options.path = dir_->Join(name);
    if (GetParam().striped) options.more_paths = {dir_->Join(name + "2")};
    options.stripe_bytes = kPageBytes;
    options.size_bytes = size_bytes;
    options.create = true;
    options.direct_io = GetParam().direct_io;
    options.engine = GetParam().engine;
    options.depth = depth;
    return OpenFileDevice(options);
  }

  std::unique_ptr<BlockDevice> Open(size_t page_count, size_t depth = 64) {
    absl::StatusOr<std::unique_ptr<BlockDevice>> device =
        OpenAt("data", page_count * kPageBytes, depth);
    return *std::move(device);  // aborts with the status when it is not OK
  }

  absl::Status Run(BlockDevice& device, Transfer& transfer) {
    IoRequest* const batch[] = {transfer.request()};
    return RunBatch(device, batch);
  }

  std::unique_ptr<TempDir> dir_;
};

TEST_P(BlockDeviceTest, TellsWhatItIs) {
  const std::unique_ptr<BlockDevice> device = Open(10, 8);
  EXPECT_EQ(device->info().engine, GetParam().engine);
  EXPECT_EQ(device->info().engine_reason, "asked for");
  EXPECT_EQ(device->info().size_bytes, 10 * kPageBytes);
  EXPECT_EQ(device->info().depth, 8u);
  EXPECT_EQ(device->info().direct_io, GetParam().direct_io);
  EXPECT_NE(device->info().direct_reason, "");
}

TEST_P(BlockDeviceTest, ReadsBackWhatWasWrittenThroughAnyBuffers) {
  constexpr size_t kPages = 256;
  const uint64_t seed = 11;
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937_64 random(seed);
  const std::unique_ptr<BlockDevice> device = Open(kPages);
  std::vector<std::byte> expected(kPages * kPageBytes);
  for (int round = 0; round < 60; ++round) {
    for (const IoOp op : {IoOp::kWrite, IoOp::kRead}) {
      const size_t pages = 1 + random() % 64;
      const uint64_t offset = random() % (kPages - pages + 1) * kPageBytes;
      Transfer transfer(op, offset, pages * kPageBytes);
      transfer.Scatter(random);
      transfer.Fill(random);
      ASSERT_TRUE(Run(*device, transfer).ok()) << device->StatusOf(*transfer.request());
      EXPECT_EQ(transfer.request()->transferred, pages * kPageBytes);
      if (op == IoOp::kWrite) {
        transfer.Gather(expected.data() + offset);
        continue;
      }
      std::vector<std::byte> actual(pages * kPageBytes);
      transfer.Gather(actual.data());
      ASSERT_EQ(std::memcmp(actual.data(), expected.data() + offset, actual.size()), 0);
    }
  }
}

// Requests may lie in registered memory, across the end of it, outside, or be scattered over both.
TEST_P(BlockDeviceTest, TransfersInAndOutsideOfRegisteredBuffers) {
  constexpr size_t kPages = 16;
  AlignedBuffer registered = *AlignedBuffer::Create(kPages * kPageBytes);
  AlignedBuffer other = *AlignedBuffer::Create(kPages * kPageBytes);
  const std::unique_ptr<BlockDevice> device = Open(kPages);
  const size_t half = registered.size() / 2;
  const std::vector<iovec> ranges = {{registered.data(), half}, {registered.data() + half, half}};
  const absl::Status status = device->RegisterBuffers(ranges);
  EXPECT_EQ(status.code(), GetParam().engine == IoEngine::kIoUring
                               ? absl::StatusCode::kOk
                               : absl::StatusCode::kUnimplemented);
  std::mt19937_64 random(3);
  for (std::byte& byte : registered.span()) byte = static_cast<std::byte>(random());
  const std::vector<std::byte> expected(registered.span().begin(), registered.span().end());
  const std::vector<iovec> whole = {{registered.data(), registered.size()}};
  const std::vector<iovec> first = {{registered.data(), kPageBytes}};
  const std::vector<iovec> mixed = {{other.data(), kPageBytes},
                                    {registered.data() + half, kPageBytes}};
  const std::vector<iovec> outside = {{other.data(), other.size()}};
  const auto run = [&](IoOp op, const std::vector<iovec>& buffers, uint64_t offset) {
    IoRequest request;
    request.op = op;
    request.offset = offset;
    request.buffers = buffers;
    IoRequest* const batch[] = {&request};
    return RunBatch(*device, batch);
  };
  ASSERT_TRUE(run(IoOp::kWrite, whole, 0).ok());
  ASSERT_TRUE(run(IoOp::kRead, outside, 0).ok());
  EXPECT_EQ(std::memcmp(other.data(), expected.data(), expected.size()), 0);
  std::memset(registered.data(), 0, registered.size());
  ASSERT_TRUE(run(IoOp::kRead, first, 5 * kPageBytes).ok());
  EXPECT_EQ(std::memcmp(registered.data(), &expected[5 * kPageBytes], kPageBytes), 0);
  ASSERT_TRUE(run(IoOp::kRead, mixed, 2 * kPageBytes).ok());
  EXPECT_EQ(std::memcmp(other.data(), &expected[2 * kPageBytes], kPageBytes), 0);
  EXPECT_EQ(std::memcmp(registered.data() + half, &expected[3 * kPageBytes], kPageBytes), 0);
  ASSERT_TRUE(run(IoOp::kRead, whole, 0).ok());
  EXPECT_EQ(std::memcmp(registered.data(), expected.data(), expected.size()), 0);
}

TEST_P(BlockDeviceTest, AClonePassesFromThreadToThreadWhileTheOtherWorks) {
  constexpr size_t kPages = 64;
  const std::unique_ptr<BlockDevice> device = Open(kPages);
  absl::StatusOr<std::unique_ptr<BlockDevice>> clone = device->Clone();
  if (GetParam().engine == IoEngine::kThreads) {
    EXPECT_EQ(clone.status().code(), absl::StatusCode::kUnimplemented);
    return;
  }
  ASSERT_TRUE(clone.ok()) << clone.status();
  EXPECT_EQ((*clone)->info().size_bytes, device->info().size_bytes);
  EXPECT_EQ((*clone)->info().direct_io, device->info().direct_io);
  for (size_t turn = 0; turn < 8; ++turn) {
    Transfer own(IoOp::kWrite, turn * kPageBytes, kPageBytes);
    std::memset(own.memory().data(), static_cast<int>(turn + 1), kPageBytes);
    IoRequest* const submitted[] = {own.request()};
    device->Submit(submitted);
    std::thread([&] {
      Transfer write(IoOp::kWrite, (kPages - 1 - turn) * kPageBytes, kPageBytes);
      std::memset(write.memory().data(), static_cast<int>(100 + turn), kPageBytes);
      EXPECT_TRUE(Run(**clone, write).ok());
    }).join();
    IoRequest* done[1];
    ASSERT_EQ(device->Wait(done), 1u);
    EXPECT_EQ(done[0]->error, 0);
  }
  // Each sees what the other wrote, and destroying the clone leaves the lock with the first.
  Transfer read(IoOp::kRead, 0, kPages * kPageBytes);
  ASSERT_TRUE(Run(**clone, read).ok());
  EXPECT_EQ(read.memory().data()[3 * kPageBytes], std::byte{4});
  ASSERT_TRUE(Run(*device, read).ok());
  EXPECT_EQ(read.memory().data()[(kPages - 1) * kPageBytes], std::byte{100});
  clone->reset();
  if (GetParam().engine == IoEngine::kMemory) return;  // there is no file to lock
  EXPECT_EQ(OpenAt("data", kPages * kPageBytes, 4).status().code(), absl::StatusCode::kUnavailable);
}

TEST_P(BlockDeviceTest, TakesAsManyBuffersAsARequestMayHave) {
  const std::unique_ptr<BlockDevice> device = Open(IoRequest::kMaxBuffers);
  std::mt19937_64 random(1);
  Transfer write(IoOp::kWrite, 0, IoRequest::kMaxBuffers * kPageBytes);
  write.buffers().clear();
  for (size_t i = IoRequest::kMaxBuffers; i-- > 0;) {
    write.buffers().push_back({write.memory().data() + i * kPageBytes, kPageBytes});
  }
  write.request()->buffers = write.buffers();
  write.Fill(random);
  ASSERT_TRUE(Run(*device, write).ok());
  Transfer read(IoOp::kRead, 0, write.memory().size());
  ASSERT_TRUE(Run(*device, read).ok());
  for (size_t i = 0; i < IoRequest::kMaxBuffers; ++i) {
    const size_t mirrored = IoRequest::kMaxBuffers - 1 - i;
    ASSERT_EQ(std::memcmp(read.memory().data() + i * kPageBytes,
                          write.memory().data() + mirrored * kPageBytes, kPageBytes),
              0);
  }
}

TEST_P(BlockDeviceTest, HandsBackEachRequestOfAHugeBatchOnce) {
  constexpr size_t kCount = 700;
  const std::unique_ptr<BlockDevice> device = Open(kCount, /*depth=*/3);
  std::vector<std::unique_ptr<Transfer>> transfers;
  std::vector<IoRequest*> batch;
  for (size_t i = 0; i < kCount; ++i) {
    transfers.push_back(std::make_unique<Transfer>(IoOp::kWrite, i * kPageBytes, kPageBytes));
    std::memset(transfers.back()->memory().data(), static_cast<int>(i % 256), kPageBytes);
    batch.push_back(transfers.back()->request());
  }
  device->Submit(batch);
  std::vector<int> seen(kCount, 0);
  std::vector<IoRequest*> done(7);
  for (size_t left = kCount; left > 0;) {
    // Both ways of asking, each with less room than there is to hand back.
    size_t count = device->Poll(absl::MakeSpan(done));
    if (count == 0) {
      count = device->Wait(absl::MakeSpan(done));
      ASSERT_GT(count, 0u) << "nobody called Wake";
    }
    ASSERT_LE(count, left);
    left -= count;
    for (size_t i = 0; i < count; ++i) {
      EXPECT_EQ(done[i]->error, 0);
      ++seen[done[i]->offset / kPageBytes];
    }
  }
  EXPECT_EQ(std::count(seen.begin(), seen.end(), 1), static_cast<ptrdiff_t>(kCount));
  EXPECT_EQ(device->Poll(absl::MakeSpan(done)), 0u);
  Transfer read(IoOp::kRead, 0, kCount * kPageBytes);
  ASSERT_TRUE(Run(*device, read).ok());
  for (size_t i = 0; i < kCount; ++i) {
    ASSERT_EQ(read.memory().data()[i * kPageBytes + i], static_cast<std::byte>(i % 256));
  }
}

TEST_P(BlockDeviceTest, SyncsAfterWritesAndAlone) {
  const std::unique_ptr<BlockDevice> device = Open(4);
  IoRequest sync;
  sync.op = IoOp::kSync;
  IoRequest* const batch[] = {&sync};
  EXPECT_TRUE(RunBatch(*device, batch).ok());
  Transfer write(IoOp::kWrite, 0, kPageBytes);
  ASSERT_TRUE(Run(*device, write).ok());
  EXPECT_TRUE(RunBatch(*device, batch).ok());
}

TEST_P(BlockDeviceTest, RefusesWhatIsNotOnWholePagesInsideTheDevice) {
  const std::unique_ptr<BlockDevice> device = Open(4);
  Transfer good(IoOp::kRead, 0, 2 * kPageBytes);
  std::byte* const data = good.memory().data();
  const std::vector<iovec> too_many(IoRequest::kMaxBuffers + 1, {data, 0});
  const std::vector<iovec> overflowing = {{data, ~size_t{0} / kPageBytes * kPageBytes},
                                          {data, 2 * kPageBytes}};
  struct BadShape {
    uint64_t offset;
    std::vector<iovec> buffers;
  };
  const std::vector<BadShape> shapes = {
      {4 * kPageBytes, {{data, kPageBytes}}},
      {3 * kPageBytes, {{data, 2 * kPageBytes}}},
      {5 * kPageBytes, {{data, 0}}},
      {uint64_t{0} - kPageBytes, {{data, 2 * kPageBytes}}},
      {512, {{data, kPageBytes}}},
      {0, {{data, 512}}},
      {0, {{data + 512, kPageBytes}}},
      {0, {{data, kPageBytes}, {data, 100}}},
      {0, too_many},
      {0, overflowing},
  };
  for (const IoOp op : {IoOp::kRead, IoOp::kWrite}) {
    for (const BadShape& shape : shapes) {
      SCOPED_TRACE(testing::Message() << IoOpName(op) << " at " << shape.offset);
      IoRequest bad;
      bad.op = op;
      bad.offset = shape.offset;
      bad.buffers = shape.buffers;
      IoRequest* const batch[] = {good.request(), &bad};
      EXPECT_EQ(RunBatch(*device, batch).code(), absl::StatusCode::kInternal);
      EXPECT_EQ(bad.error, EINVAL);
      EXPECT_EQ(bad.transferred, 0u);
      EXPECT_EQ(good.request()->error, 0);
    }
  }
  IoRequest sync;
  sync.op = IoOp::kSync;
  sync.buffers = good.buffers();
  IoRequest* const batch[] = {&sync};
  EXPECT_THAT(RunBatch(*device, batch).message(), HasSubstr("sync: Invalid argument"));
}

TEST_P(BlockDeviceTest, ErrorsNamePathOperationOffsetLengthAndErrno) {
  const std::unique_ptr<BlockDevice> device = Open(4);
  Transfer read(IoOp::kRead, 3 * kPageBytes, 2 * kPageBytes);
  const DeviceInfo& info = device->info();
  EXPECT_EQ(Run(*device, read).message(),
            (GetParam().striped ? info.more_paths[0] : info.path) +
                ": read of 8192 bytes at offset 12288" +
                (GetParam().striped ? " of the device, at 4096 in this file" : "") +
                ": Invalid argument after 0 bytes");
}

TEST_P(BlockDeviceTest, TransfersOfNothingSucceed) {
  const std::unique_ptr<BlockDevice> device = Open(4);
  IoRequest empty;
  empty.op = IoOp::kWrite;
  empty.offset = 4 * kPageBytes;
  IoRequest* const batch[] = {&empty};
  EXPECT_TRUE(RunBatch(*device, batch).ok());
  EXPECT_TRUE(RunBatch(*device, {}).ok());
}

TEST_P(BlockDeviceTest, ARequestMayBeSubmittedAgain) {
  const std::unique_ptr<BlockDevice> device = Open(2);
  Transfer transfer(IoOp::kWrite, 2 * kPageBytes, kPageBytes);
  EXPECT_FALSE(Run(*device, transfer).ok());
  transfer.request()->offset = kPageBytes;
  EXPECT_TRUE(Run(*device, transfer).ok());
  transfer.request()->op = IoOp::kRead;
  EXPECT_TRUE(Run(*device, transfer).ok());
  EXPECT_EQ(transfer.request()->transferred, kPageBytes);
}

TEST_P(BlockDeviceTest, PollDoesNotBlock) {
  const std::unique_ptr<BlockDevice> device = Open(2);
  std::vector<IoRequest*> done(4);
  EXPECT_EQ(device->Poll(absl::MakeSpan(done)), 0u);
  EXPECT_EQ(device->Poll({}), 0u);
  Transfer read(IoOp::kRead, 0, kPageBytes);
  IoRequest* const batch[] = {read.request()};
  device->Submit(batch);
  EXPECT_EQ(device->Poll({}), 0u);
  size_t count = 0;
  while (count == 0) count = device->Poll(absl::MakeSpan(done));
  EXPECT_EQ(count, 1u);
  EXPECT_EQ(done[0], read.request());
}

TEST_P(BlockDeviceTest, WakesBeforeAWaitEndTheNextOneOnce) {
  const std::unique_ptr<BlockDevice> device = Open(2);
  std::vector<IoRequest*> done(4);
  Transfer read(IoOp::kRead, 0, kPageBytes);
  IoRequest* const batch[] = {read.request()};
  for (int round = 0; round < 20; ++round) {
    device->Wake();
    std::thread([&device] { device->Wake(); }).join();
    // Polling does not answer a Wake.
    EXPECT_EQ(device->Poll(absl::MakeSpan(done)), 0u);
    ASSERT_EQ(device->Wait(absl::MakeSpan(done)), 0u);
    // With the two of them answered by one, this Wait ends for the request only.
    device->Submit(batch);
    ASSERT_EQ(device->Wait(absl::MakeSpan(done)), 1u);
  }
}

TEST_P(BlockDeviceTest, WakeEndsAWaitOnAnotherThread) {
  const std::unique_ptr<BlockDevice> device = Open(2);
  absl::Mutex mu;
  int answered = 0;  // guarded by mu
  constexpr int kRounds = 300;
  std::thread owner([&] {
    std::vector<IoRequest*> done(4);
    for (int round = 0; round < kRounds; ++round) {
      EXPECT_EQ(device->Wait(absl::MakeSpan(done)), 0u);
      absl::MutexLock lock(&mu);
      ++answered;
    }
  });
  for (int round = 1; round <= kRounds; ++round) {
    device->Wake();
    const auto is_answered = [&] { return answered == round; };
    absl::MutexLock lock(&mu);
    mu.Await(absl::Condition(&is_answered));
  }
  owner.join();
}

TEST_P(BlockDeviceTest, BelongsToTheThreadThatUsesItFirst) {
  std::unique_ptr<BlockDevice> device = Open(8);
  device->Wake();
  std::thread([&] {
    std::vector<IoRequest*> done(4);
    EXPECT_EQ(device->Wait(absl::MakeSpan(done)), 0u);
    Transfer write(IoOp::kWrite, 0, 8 * kPageBytes);
    EXPECT_TRUE(Run(*device, write).ok());
  }).join();
  // Idle, it may be destroyed anywhere, and a device of this thread does not notice.
  absl::StatusOr<std::unique_ptr<BlockDevice>> other = OpenAt("other", 2 * kPageBytes, 2);
  ASSERT_TRUE(other.ok()) << other.status();
  Transfer read(IoOp::kRead, 0, kPageBytes);
  EXPECT_TRUE(Run(**other, read).ok());
  device.reset();
  EXPECT_TRUE(Run(**other, read).ok());
}

TEST_P(BlockDeviceTest, DestructionWaitsForWhatIsInFlight) {
  constexpr size_t kCount = 300;
  std::vector<std::unique_ptr<Transfer>> transfers;
  std::vector<IoRequest*> batch;
  for (size_t i = 0; i < kCount; ++i) {
    transfers.push_back(std::make_unique<Transfer>(IoOp::kWrite, i * kPageBytes, kPageBytes));
    std::memset(transfers.back()->memory().data(), static_cast<int>(1 + i % 255), kPageBytes);
    batch.push_back(transfers.back()->request());
  }
  std::unique_ptr<BlockDevice> device = Open(kCount, /*depth=*/2);
  device->Submit(batch);
  device.reset();
  transfers.clear();
  if (GetParam().engine == IoEngine::kMemory) return;  // gone with its contents
  device = Open(kCount);
  Transfer read(IoOp::kRead, 0, kCount * kPageBytes);
  ASSERT_TRUE(Run(*device, read).ok());
  for (size_t i = 0; i < kCount; ++i) {
    ASSERT_EQ(read.memory().data()[i * kPageBytes], static_cast<std::byte>(1 + i % 255));
  }
}

TEST_P(BlockDeviceTest, IsFreeForTheNextAsSoonAsItIsDestroyed) {
  for (int round = 0; round < 50; ++round) {
    const std::unique_ptr<BlockDevice> device = Open(4);
    Transfer read(IoOp::kRead, 0, kPageBytes);
    ASSERT_TRUE(Run(*device, read).ok());
  }
}

INSTANTIATE_TEST_SUITE_P(
    Engines, BlockDeviceTest,
    testing::Values(Case{"Memory", IoEngine::kMemory},
                    Case{"Faulty", IoEngine::kMemory, false, "", false, TestDouble::kFaulty},
                    Case{"PowerCut", IoEngine::kMemory, false, "", false, TestDouble::kPowerCut},
                    Case{"IoUringDirect", IoEngine::kIoUring, true},
                    Case{"IoUringBuffered", IoEngine::kIoUring},
                    Case{"IoUringTmpfs", IoEngine::kIoUring, false, "/dev/shm"},
                    Case{"IoUringStriped", IoEngine::kIoUring, true, "", true},
                    Case{"ThreadsStriped", IoEngine::kThreads, false, "", true},
                    Case{"ThreadsDirect", IoEngine::kThreads, true},
                    Case{"ThreadsBuffered", IoEngine::kThreads},
                    Case{"ThreadsTmpfs", IoEngine::kThreads, false, "/dev/shm"}),
    [](const testing::TestParamInfo<Case>& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace terrace
