#include "runtime/weight_reader.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "gtest/gtest.h"
#include "io/aligned_buffer.h"
#include "io/memory_device.h"
#include "tests/support/manual_device.h"

namespace terrace {
namespace {

constexpr size_t kPages = 400;

class WeightReaderTest : public testing::Test {
 protected:
  // A page of the file, into the same page of memory.
  WeightReader::Fragment Page(size_t page, uint64_t tag) {
    return {.offset = page * kPageBytes,
            .to = memory_.data() + page * kPageBytes,
            .bytes = kPageBytes,
            .read = WeightReader::kNoRead,
            .tag = tag};
  }
  static void TakeAll(WeightReader& reader) {
    while (reader.under_way() > 0) reader.Wait();
  }

  AlignedBuffer memory_ = *AlignedBuffer::Create(kPages * kPageBytes);
};

// However few requests there are, so that a large call is many small ones.
TEST_F(WeightReaderTest, GapsStayBelowTheirShareOfWhatIsWanted) {
  auto device =
      MemoryDevice::Create({.size_bytes = kPages * kPageBytes, .depth = 8, .transfer_hook = {}});
  WeightReaderOptions options;
  options.gap_bytes = 16 * kPageBytes;
  options.max_reads = 2;
  options.max_overread = 1;
  auto reader = *WeightReader::Create(*std::move(device), options, {});
  std::vector<WeightReader::Fragment> fragments;
  for (size_t page = 0; page < kPages; page += 3) fragments.push_back(Page(page, page));
  reader->Demand(absl::MakeSpan(fragments));
  TakeAll(*reader);
  const WeightReaderStats stats = reader->Stats();
  EXPECT_EQ(stats.wanted_bytes, fragments.size() * kPageBytes);
  EXPECT_LE(stats.read_bytes, 2 * stats.wanted_bytes);
  EXPECT_GT(stats.read_bytes, stats.wanted_bytes) << "some gaps are worth it";
}

// Several reads of one row of weights, which somebody waits for now.
TEST_F(WeightReaderTest, AllReadsOfATagAreRaised) {
  auto owned = std::make_unique<ManualDevice>(1);
  ManualDevice& device = *owned;
  auto reader = *WeightReader::Create(std::move(owned), {}, {});
  const auto next = [&] {
    device.Complete(device.AwaitAsleep().front());
    return device.AwaitAsleep().front()->offset / kPageBytes;
  };
  std::vector<WeightReader::Fragment> first = {Page(0, 1)};
  reader->Demand(absl::MakeSpan(first));
  ASSERT_EQ(device.AwaitAsleep().size(), 1u);
  std::vector<WeightReader::Fragment> guessed = {Page(100, 0x107), Page(200, 0x207),
                                                 Page(300, 0x308)};
  reader->Prefetch(absl::MakeSpan(guessed));
  std::vector<WeightReader::Fragment> wanted;
  for (size_t page = 10; page < 60; page += 10) wanted.push_back(Page(page, page));
  reader->Demand(absl::MakeSpan(wanted));
  reader->RaiseTagged(/*mask=*/0xff, /*value=*/7);
  std::vector<uint64_t> order;
  for (size_t i = 0; i < 8; ++i) order.push_back(next());
  EXPECT_EQ(order.back(), 300u) << "nobody waits for it";
  const auto at = [&](uint64_t page) { return std::find(order.begin(), order.end(), page); };
  EXPECT_LT(at(100), at(50)) << "they take turns with what is demanded";
  EXPECT_LT(at(200), at(50));
  device.RunFreely();
  TakeAll(*reader);
}

}  // namespace
}  // namespace terrace
