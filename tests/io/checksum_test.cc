#include "io/checksum.h"

#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace terrace {
namespace {

std::vector<std::byte> RandomPages(uint64_t seed, size_t page_count) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> bytes(page_count * kPageBytes);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

// What disks hold must be readable by every later version, so the algorithm is pinned.
TEST(Checksum, IsXxh3) {
  EXPECT_EQ(Checksum64({}), 0x2d06800538d394c2u);
  std::vector<std::byte> page(kPageBytes);
  for (size_t i = 0; i < page.size(); ++i) page[i] = static_cast<std::byte>(i % 251);
  EXPECT_EQ(Checksum64(page), 0x7135ffa504f1bc71u);
  PageChecksum checksum = 0;
  ChecksumPages(page, absl::MakeSpan(&checksum, 1));
  EXPECT_EQ(checksum, static_cast<PageChecksum>(Checksum64(page)));
}

TEST(Checksum, NoticesEveryFlippedBitAndNamesItsPage) {
  constexpr size_t kPages = 4;
  const uint64_t seed = 7;
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::vector<std::byte> bytes = RandomPages(seed, kPages);
  std::vector<PageChecksum> checksums(kPages);
  ChecksumPages(bytes, absl::MakeSpan(checksums));
  EXPECT_EQ(FirstCorruptPage(bytes, checksums), kPages);
  std::mt19937_64 random(seed);
  for (int round = 0; round < 2000; ++round) {
    const size_t bit = random() % (bytes.size() * 8);
    const std::byte mask = std::byte{1} << (bit % 8);
    bytes[bit / 8] ^= mask;
    ASSERT_EQ(FirstCorruptPage(bytes, checksums), bit / 8 / kPageBytes) << "bit " << bit;
    bytes[bit / 8] ^= mask;
  }
}

TEST(Checksum, NamesTheFirstOfSeveralCorruptPages) {
  std::vector<std::byte> bytes = RandomPages(8, 5);
  std::vector<PageChecksum> checksums(5);
  ChecksumPages(bytes, absl::MakeSpan(checksums));
  bytes[3 * kPageBytes] ^= std::byte{1};
  bytes[2 * kPageBytes + 5] ^= std::byte{1};
  EXPECT_EQ(FirstCorruptPage(bytes, checksums), 2u);
}

TEST(Checksum, OfNoPagesIsNothing) {
  ChecksumPages({}, {});
  EXPECT_EQ(FirstCorruptPage({}, {}), 0u);
}

}  // namespace
}  // namespace terrace
