#include "io/aligned_buffer.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <utility>

#include "gtest/gtest.h"

namespace terrace {
namespace {

constexpr size_t kHugePageBytes = size_t{2} << 20;

TEST(AlignedBuffer, IsAlignedZeroAndWholePages) {
  for (const size_t bytes : {size_t{1}, kPageBytes, kPageBytes + 1, kHugePageBytes - kPageBytes,
                             kHugePageBytes, kHugePageBytes + 1, 3 * kHugePageBytes}) {
    SCOPED_TRACE(bytes);
    absl::StatusOr<AlignedBuffer> buffer = AlignedBuffer::Create(bytes);
    ASSERT_TRUE(buffer.ok()) << buffer.status();
    EXPECT_EQ(buffer->size(), PageAlignUp(bytes));
    const uintptr_t address = reinterpret_cast<uintptr_t>(buffer->data());
    EXPECT_EQ(address % (buffer->size() >= kHugePageBytes ? kHugePageBytes : kPageBytes), 0u);
    const auto is_zero = [](std::byte byte) { return byte == std::byte{0}; };
    EXPECT_TRUE(std::all_of(buffer->span().begin(), buffer->span().end(), is_zero));
    std::fill(buffer->span().begin(), buffer->span().end(), std::byte{1});
  }
}

TEST(AlignedBuffer, OfNothingIsEmpty) {
  absl::StatusOr<AlignedBuffer> buffer = AlignedBuffer::Create(0);
  ASSERT_TRUE(buffer.ok());
  EXPECT_EQ(buffer->data(), nullptr);
  EXPECT_EQ(buffer->size(), 0u);
}

TEST(AlignedBuffer, MovesOwnership) {
  AlignedBuffer first = *AlignedBuffer::Create(kPageBytes);
  std::byte* const data = first.data();
  data[7] = std::byte{42};
  AlignedBuffer second = std::move(first);
  EXPECT_EQ(first.size(), 0u);
  EXPECT_EQ(second.data(), data);
  AlignedBuffer third = *AlignedBuffer::Create(kHugePageBytes);
  third = std::move(second);
  EXPECT_EQ(third.data(), data);
  EXPECT_EQ(third.size(), kPageBytes);
  EXPECT_EQ(third.data()[7], std::byte{42});
  EXPECT_EQ(second.data(), nullptr);
}

TEST(AlignedBuffer, ThatCannotBeMappedIsResourceExhausted) {
  const size_t max = std::numeric_limits<size_t>::max();
  for (const size_t bytes : {max, max - kHugePageBytes - kPageBytes, max / 2}) {
    const absl::StatusOr<AlignedBuffer> buffer = AlignedBuffer::Create(bytes);
    EXPECT_EQ(buffer.status().code(), absl::StatusCode::kResourceExhausted) << bytes;
  }
}

}  // namespace
}  // namespace terrace
