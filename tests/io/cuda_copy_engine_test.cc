#include "io/cuda_copy_engine.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "io/aligned_buffer.h"

namespace terrace {
namespace {

using ::testing::AnyOf;
using ::testing::HasSubstr;

constexpr size_t kKiB = size_t{1} << 10;
constexpr size_t kMiB = size_t{1} << 20;

Copy Up(const std::byte* host, std::byte* device, size_t bytes) {
  return {.source = host,
          .destination = device,
          .bytes = bytes,
          .direction = CopyDirection::kHostToDevice};
}
Copy Down(const std::byte* device, std::byte* host, size_t bytes) {
  return {.source = device,
          .destination = host,
          .bytes = bytes,
          .direction = CopyDirection::kDeviceToHost};
}

void FillRandom(absl::Span<std::byte> bytes, uint64_t seed) {
  std::mt19937_64 random(seed);
  for (size_t at = 0; at < bytes.size(); at += sizeof(uint64_t)) {
    const uint64_t word = random();
    std::memcpy(&bytes[at], &word, std::min(sizeof(word), bytes.size() - at));
  }
}

TEST(CudaCopyEngine, SaysWhyThereIsNone) {
  const absl::StatusOr<std::unique_ptr<CopyEngine>> engine = MakeCudaCopyEngine();
  if (engine.ok()) GTEST_SKIP() << "a device answers: " << (*engine)->name();
  EXPECT_EQ(engine.status().code(), absl::StatusCode::kUnavailable) << engine.status();
  const std::string message(engine.status().message());
  EXPECT_THAT(message, HasSubstr("CUDA copy engine: "));
  if (!BuiltWithCuda()) {
    EXPECT_THAT(message, HasSubstr("built without CUDA"));
  } else if (message.find("35)") != std::string::npos) {
    EXPECT_THAT(message, HasSubstr("CUDA driver version is insufficient"));
    EXPECT_THAT(message, HasSubstr("cudaErrorInsufficientDriver"));
    EXPECT_THAT(message,
                AnyOf(HasSubstr("no CUDA driver is installed"), HasSubstr("the driver supports")));
  } else {
    EXPECT_THAT(message, AnyOf(HasSubstr("cudaError"), HasSubstr("there is no CUDA device")));
  }
}

// Needs a device that answers; is skipped, by name, where there is none.
class CudaCopyEngineOnDevice : public ::testing::TestWithParam<CudaCopyMethod> {
 protected:
  static constexpr size_t kPoolBytes = 64 * kMiB;

  void SetUp() override {
    absl::StatusOr<std::unique_ptr<CopyEngine>> engine =
        MakeCudaCopyEngine({.device = 0, .pool_bytes = kPoolBytes, .method = GetParam()});
    if (!engine.ok()) GTEST_SKIP() << engine.status();
    engine_ = *std::move(engine);
  }

  std::unique_ptr<DeviceMemory> Allocate(size_t bytes) {
    absl::StatusOr<std::unique_ptr<DeviceMemory>> memory = engine_->Allocate(bytes);
    EXPECT_TRUE(memory.ok()) << memory.status();
    return memory.ok() ? *std::move(memory) : nullptr;
  }
  std::unique_ptr<PinnedMemory> Pin(absl::Span<std::byte> memory) {
    absl::StatusOr<std::unique_ptr<PinnedMemory>> pinned = engine_->Pin(memory);
    EXPECT_TRUE(pinned.ok()) << pinned.status();
    return pinned.ok() ? *std::move(pinned) : nullptr;
  }
  absl::Status SubmitAndWait(absl::Span<const Copy> batch) {
    const absl::StatusOr<CopyTicket> ticket = engine_->Submit(batch);
    return ticket.ok() ? engine_->Wait(*ticket) : ticket.status();
  }

  std::unique_ptr<CopyEngine> engine_;
};

INSTANTIATE_TEST_SUITE_P(Methods, CudaCopyEngineOnDevice,
                         ::testing::Values(CudaCopyMethod::kAuto, CudaCopyMethod::kCopyEngine,
                                           CudaCopyMethod::kKernel),
                         [](const ::testing::TestParamInfo<CudaCopyMethod>& info) {
                           switch (info.param) {
                             case CudaCopyMethod::kAuto:
                               return "Auto";
                             case CudaCopyMethod::kCopyEngine:
                               return "CopyEngine";
                             case CudaCopyMethod::kKernel:
                               return "Kernel";
                           }
                           return "";
                         });

// Blocks go up in a scattered order and come down in another, one batch after the other without a
// wait in between: rounds write to the device what the round before reads from it. Every round
// comes down to memory of its own, and has bytes of its own.
void ScatterAndGather(CopyEngine& engine, DeviceMemory& device, absl::Span<std::byte> host,
                      size_t block_bytes) {
  constexpr size_t kRounds = 4;
  const size_t round_bytes = host.size() / 2 / kRounds;
  const size_t blocks = std::min(round_bytes, device.size()) / block_bytes;
  std::byte* const back = host.data() + host.size() / 2;
  FillRandom(host.first(host.size() / 2), 7);
  std::memset(back, 0, host.size() / 2);
  std::vector<CopyTicket> tickets;
  for (size_t round = 0; round < kRounds; ++round) {
    std::vector<Copy> up;
    std::vector<Copy> down;
    for (size_t i = 0; i < blocks; ++i) {
      const size_t slot = (i * 37 + round) % blocks;
      const size_t at = round * round_bytes + i * block_bytes;
      up.push_back(Up(host.data() + at, device.data() + slot * block_bytes, block_bytes));
      down.push_back(Down(device.data() + slot * block_bytes, back + at, block_bytes));
    }
    const CopyPriority priority = round % 2 == 0 ? CopyPriority::kDemand : CopyPriority::kOffload;
    const absl::StatusOr<CopyTicket> first = engine.Submit(up, priority);
    ASSERT_TRUE(first.ok()) << first.status();
    const absl::StatusOr<CopyTicket> second = engine.Submit(down);
    ASSERT_TRUE(second.ok()) << second.status();
    EXPECT_LT(*first, *second);
    tickets.push_back(*first);
    tickets.push_back(*second);
  }
  // The newest first, and all of them twice.
  for (int i = 0; i < 2; ++i) {
    for (auto ticket = tickets.rbegin(); ticket != tickets.rend(); ++ticket) {
      ASSERT_TRUE(engine.Wait(*ticket).ok());
    }
  }
  for (size_t round = 0; round < kRounds; ++round) {
    ASSERT_EQ(std::memcmp(host.data() + round * round_bytes, back + round * round_bytes,
                          blocks * block_bytes),
              0)
        << "round " << round << ", blocks of " << block_bytes;
  }
}

TEST_P(CudaCopyEngineOnDevice, KeepsTheOrderOfBatchesThatTouchTheSameMemory) {
  absl::StatusOr<AlignedBuffer> host = AlignedBuffer::Create(16 * kMiB);
  ASSERT_TRUE(host.ok());
  const std::unique_ptr<PinnedMemory> pinned = Pin(host->span());
  const std::unique_ptr<DeviceMemory> device = Allocate(2 * kMiB);
  ASSERT_TRUE(pinned != nullptr && device != nullptr);
  // 37 is prime to the number of blocks in each, so that a round moves every one once.
  for (const size_t block_bytes : {4 * kKiB, 64 * kKiB, 512 * kKiB}) {
    ScatterAndGather(*engine_, *device, host->span(), block_bytes);
  }
}

TEST_P(CudaCopyEngineOnDevice, CopiesMemoryThatIsNotPinned) {
  std::vector<std::byte> host(4 * kMiB);
  const std::unique_ptr<DeviceMemory> device = Allocate(512 * kKiB);
  ASSERT_NE(device, nullptr);
  ScatterAndGather(*engine_, *device, absl::MakeSpan(host), 16 * kKiB);
}

TEST_P(CudaCopyEngineOnDevice, CopiesAnySizeAtAnyAlignment) {
  absl::StatusOr<AlignedBuffer> host = AlignedBuffer::Create(2 * kMiB);
  ASSERT_TRUE(host.ok());
  const std::unique_ptr<PinnedMemory> pinned = Pin(host->span());
  const std::unique_ptr<DeviceMemory> device = Allocate(kMiB);
  ASSERT_TRUE(pinned != nullptr && device != nullptr);
  constexpr uint64_t kSeed = 20263;
  std::mt19937_64 random(kSeed);
  FillRandom(host->span(), kSeed);
  std::vector<std::byte> wanted(host->data(), host->data() + host->size());
  std::byte* const back = host->data() + kMiB;
  std::vector<Copy> up;
  std::vector<Copy> down;
  size_t at = 0;
  // Some of them around the 4 KiB that a warp takes at once.
  for (const size_t bytes : {1, 15, 16, 17, 31, 511, 512, 4095, 4096, 4097, 8192, 12345, 65537}) {
    for (const size_t skew : {0, 1, 4, 8, 16}) {
      const size_t from = at + skew;
      const size_t on_device = at + random() % 2 * skew;
      const size_t to = at + random() % 17;
      up.push_back(Up(host->data() + from, device->data() + on_device, bytes));
      down.push_back(Down(device->data() + on_device, back + to, bytes));
      std::copy_n(wanted.begin() + static_cast<ptrdiff_t>(from), bytes,
                  wanted.begin() + static_cast<ptrdiff_t>(kMiB + to));
      at += (bytes + 127) / 64 * 64;
    }
  }
  ASSERT_LT(at, kMiB);
  ASSERT_TRUE(engine_->Submit(up).ok());
  ASSERT_TRUE(SubmitAndWait(down).ok());
  // What lies between the copies as well.
  EXPECT_EQ(std::memcmp(host->data(), wanted.data(), wanted.size()), 0) << "seed " << kSeed;
}

TEST_P(CudaCopyEngineOnDevice, MovesBothDirectionsInOneBatch) {
  absl::StatusOr<AlignedBuffer> host = AlignedBuffer::Create(8 * kMiB);
  ASSERT_TRUE(host.ok());
  const std::unique_ptr<PinnedMemory> pinned = Pin(host->span());
  const std::unique_ptr<DeviceMemory> device = Allocate(4 * kMiB);
  ASSERT_TRUE(pinned != nullptr && device != nullptr);
  FillRandom(host->span(), 8);
  std::vector<std::byte> wanted(host->data(), host->data() + host->size());
  ASSERT_TRUE(SubmitAndWait({{Up(host->data(), device->data(), 2 * kMiB)}}).ok());
  std::vector<Copy> batch;
  for (size_t at = 0; at < 2 * kMiB; at += 16 * kKiB) {
    batch.push_back(
        Up(host->data() + 2 * kMiB + at, device->data() + 4 * kMiB - 16 * kKiB - at, 16 * kKiB));
    batch.push_back(Down(device->data() + at, host->data() + 4 * kMiB + at, 16 * kKiB));
  }
  ASSERT_TRUE(SubmitAndWait(batch).ok());
  std::vector<Copy> check;
  for (size_t at = 0; at < 2 * kMiB; at += 16 * kKiB) {
    check.push_back(
        Down(device->data() + 4 * kMiB - 16 * kKiB - at, host->data() + 6 * kMiB + at, 16 * kKiB));
  }
  ASSERT_TRUE(SubmitAndWait(check).ok());
  std::copy_n(wanted.begin(), 4 * kMiB, wanted.begin() + 4 * kMiB);
  EXPECT_EQ(std::memcmp(host->data(), wanted.data(), wanted.size()), 0);
}

TEST_P(CudaCopyEngineOnDevice, MayBeUsedFromSeveralThreads) {
  constexpr size_t kThreads = 4;
  constexpr size_t kBytes = 256 * kKiB;  // of each thread
  constexpr size_t kBlock = 4 * kKiB;
  absl::StatusOr<AlignedBuffer> host = AlignedBuffer::Create(2 * kThreads * kBytes);
  ASSERT_TRUE(host.ok());
  const std::unique_ptr<PinnedMemory> pinned = Pin(host->span());
  ASSERT_NE(pinned, nullptr);
  std::vector<std::thread> threads;
  for (size_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      std::byte* const from = host->data() + 2 * t * kBytes;
      std::byte* const to = from + kBytes;
      for (uint64_t round = 0; round < 8; ++round) {
        const std::unique_ptr<DeviceMemory> device = Allocate(kBytes);
        ASSERT_NE(device, nullptr);
        FillRandom({from, kBytes}, t * 100 + round);
        std::vector<Copy> up;
        std::vector<Copy> down;
        for (size_t at = 0; at < kBytes; at += kBlock) {
          const size_t mirrored = kBytes - kBlock - at;
          up.push_back(Up(from + at, device->data() + mirrored, kBlock));
          down.push_back(Down(device->data() + mirrored, to + at, kBlock));
        }
        ASSERT_TRUE(engine_->Submit(up).ok());
        ASSERT_TRUE(SubmitAndWait(down).ok());
        ASSERT_EQ(std::memcmp(from, to, kBytes), 0) << "thread " << t << " round " << round;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_P(CudaCopyEngineOnDevice, TakesMoreBatchesThanItKeepsUnderWay) {
  absl::StatusOr<AlignedBuffer> host = AlignedBuffer::Create(2 * kMiB);
  ASSERT_TRUE(host.ok());
  const std::unique_ptr<PinnedMemory> pinned = Pin(host->span());
  const std::unique_ptr<DeviceMemory> device = Allocate(kMiB);
  ASSERT_TRUE(pinned != nullptr && device != nullptr);
  FillRandom(host->span(), 9);
  CopyTicket first{0};
  for (size_t i = 0; i < 512; ++i) {
    const size_t at = i % 16 * 64 * kKiB;
    const bool up = i / 16 % 2 == 0;
    const Copy copy = up ? Up(host->data() + at, device->data() + at, 64 * kKiB)
                         : Down(device->data() + at, host->data() + kMiB + at, 64 * kKiB);
    const absl::StatusOr<CopyTicket> ticket = engine_->Submit({&copy, 1});
    ASSERT_TRUE(ticket.ok()) << ticket.status();
    if (i == 0) first = *ticket;
  }
  ASSERT_TRUE(SubmitAndWait({{Down(device->data(), host->data() + kMiB, kMiB)}}).ok());
  EXPECT_TRUE(engine_->Wait(first).ok()) << "long ended";
  EXPECT_EQ(std::memcmp(host->data(), host->data() + kMiB, kMiB), 0);
}

TEST_P(CudaCopyEngineOnDevice, TakesEmptyBatchesAndRefusesUnknownTickets) {
  EXPECT_EQ(engine_->Wait(CopyTicket{1}).code(), absl::StatusCode::kInvalidArgument);
  const absl::StatusOr<CopyTicket> none = engine_->Submit({});
  ASSERT_TRUE(none.ok()) << none.status();
  EXPECT_TRUE(engine_->Wait(*none).ok());
  EXPECT_TRUE(engine_->Wait(*none).ok()) << "again";
  const Copy empty[] = {Copy()};
  EXPECT_TRUE(SubmitAndWait(empty).ok());
  EXPECT_EQ(engine_->Wait(CopyTicket{0}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(engine_->Wait(CopyTicket{1000}).code(), absl::StatusCode::kInvalidArgument);
}

TEST_P(CudaCopyEngineOnDevice, CapacityIsHardAndComesBack) {
  std::unique_ptr<DeviceMemory> most = Allocate(kPoolBytes - kPageBytes);
  ASSERT_NE(most, nullptr);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(most->data()) % 256, 0u);
  EXPECT_EQ(most->size(), kPoolBytes - kPageBytes);
  const absl::Status refused = engine_->Allocate(kPageBytes + 1).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.message()),
              HasSubstr("4097 bytes asked for, 4096 free of the 67108864"));
  EXPECT_NE(Allocate(kPageBytes), nullptr);
  EXPECT_EQ(engine_->Allocate(std::numeric_limits<size_t>::max()).status().code(),
            absl::StatusCode::kResourceExhausted);
  most.reset();
  EXPECT_NE(Allocate(kPoolBytes), nullptr);
  EXPECT_NE(Allocate(0), nullptr);
}

TEST_P(CudaCopyEngineOnDevice, SaysWhenTheDeviceHasNoMoreMemory) {
  absl::StatusOr<std::unique_ptr<CopyEngine>> engine =
      MakeCudaCopyEngine({.device = 0, .pool_bytes = size_t{1} << 50, .method = GetParam()});
  ASSERT_TRUE(engine.ok()) << engine.status();
  EXPECT_EQ((*engine)->Allocate(size_t{1} << 50).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE((*engine)->Allocate(kPageBytes).ok());
}

TEST_P(CudaCopyEngineOnDevice, RefusesADeviceThatThereIsNot) {
  for (const int device : {-1, 1000}) {
    EXPECT_EQ(MakeCudaCopyEngine({.device = device, .pool_bytes = 0}).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
}

TEST_P(CudaCopyEngineOnDevice, WhatItGaveOutMayOutliveIt) {
  std::vector<std::byte> host(kMiB);
  const std::unique_ptr<DeviceMemory> memory = Allocate(kMiB);
  const std::unique_ptr<PinnedMemory> pinned = Pin(absl::MakeSpan(host));
  ASSERT_TRUE(memory != nullptr && pinned != nullptr);
  // Not waited for: the engine's end does.
  const Copy copy = Up(host.data(), memory->data(), kMiB);
  ASSERT_TRUE(engine_->Submit({&copy, 1}).ok());
  engine_.reset();
  EXPECT_NE(memory->data(), nullptr);
}

TEST_P(CudaCopyEngineOnDevice, PinsAndUnpinsTheSameMemoryAgain) {
  absl::StatusOr<AlignedBuffer> host = AlignedBuffer::Create(kMiB);
  ASSERT_TRUE(host.ok());
  for (int i = 0; i < 2; ++i) EXPECT_NE(Pin(host->span()), nullptr);
  EXPECT_NE(Pin({}), nullptr);
}

}  // namespace
}  // namespace terrace
