#include "io/copy_engine.h"

#include <cstring>
#include <limits>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "io/aligned_buffer.h"

namespace terrace {
namespace {

TEST(HostCopyEngine, CopiesABatchThereAndBack) {
  const std::unique_ptr<CopyEngine> engine = MakeHostCopyEngine();
  EXPECT_STREQ(engine->name(), "host (HBM emulated)");
  absl::StatusOr<std::unique_ptr<DeviceMemory>> memory = engine->Allocate(3 * kPageBytes);
  ASSERT_TRUE(memory.ok()) << memory.status();
  EXPECT_EQ((*memory)->size(), 3 * kPageBytes);
  std::byte* const device = (*memory)->data();

  const std::vector<std::byte> ones(kPageBytes, std::byte{1});
  const std::vector<std::byte> twos(kPageBytes, std::byte{2});
  std::vector<std::byte> back(2 * kPageBytes);
  const Copy up[] = {{ones.data(), device + kPageBytes, kPageBytes, CopyDirection::kHostToDevice},
                     {twos.data(), device, kPageBytes, CopyDirection::kHostToDevice}};
  const Copy down[] = {{device, back.data(), back.size(), CopyDirection::kDeviceToHost}};
  const absl::StatusOr<CopyTicket> first = engine->Submit(up);
  const absl::StatusOr<CopyTicket> second = engine->Submit(down);
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_LT(*first, *second);
  EXPECT_TRUE(engine->Wait(*second).ok());
  EXPECT_TRUE(engine->Wait(*first).ok());
  EXPECT_EQ(std::memcmp(back.data(), twos.data(), kPageBytes), 0);
  EXPECT_EQ(std::memcmp(back.data() + kPageBytes, ones.data(), kPageBytes), 0);
}

TEST(HostCopyEngine, TakesEmptyBatchesAndEmptyCopies) {
  const std::unique_ptr<CopyEngine> engine = MakeHostCopyEngine();
  const absl::StatusOr<CopyTicket> none = engine->Submit({});
  ASSERT_TRUE(none.ok());
  EXPECT_TRUE(engine->Wait(*none).ok());
  const Copy empty[] = {Copy()};
  EXPECT_TRUE(engine->Submit(empty).ok());
}

TEST(HostCopyEngine, RefusesTicketsThatItNeverGaveOut) {
  const std::unique_ptr<CopyEngine> engine = MakeHostCopyEngine();
  EXPECT_EQ(engine->Wait(CopyTicket{1}).code(), absl::StatusCode::kInvalidArgument);
}

TEST(HostCopyEngine, SaysWhenMemoryDoesNotSuffice) {
  const std::unique_ptr<CopyEngine> engine = MakeHostCopyEngine();
  EXPECT_EQ(engine->Allocate(std::numeric_limits<size_t>::max() / 2).status().code(),
            absl::StatusCode::kResourceExhausted);
}

TEST(HostCopyEngine, MayBeUsedFromSeveralThreads) {
  const std::unique_ptr<CopyEngine> engine = MakeHostCopyEngine();
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&engine, t] {
      const std::vector<std::byte> source(1000, static_cast<std::byte>(t));
      std::vector<std::byte> destination(1000);
      CopyTicket last{0};
      for (int i = 0; i < 200; ++i) {
        const Copy copy[] = {
            {source.data(), destination.data(), 1000, CopyDirection::kHostToDevice}};
        const absl::StatusOr<CopyTicket> ticket = engine->Submit(copy);
        ASSERT_TRUE(ticket.ok());
        EXPECT_GT(*ticket, last);
        last = *ticket;
        EXPECT_TRUE(engine->Wait(last).ok());
        EXPECT_EQ(source, destination);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace terrace
