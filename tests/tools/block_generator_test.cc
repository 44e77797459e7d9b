#include "tools/block_generator.h"

#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <unordered_set>
#include <vector>

#include "gtest/gtest.h"

namespace terrace {
namespace {

using Block = std::vector<std::byte>;

constexpr uint64_t kSeed = 42;
constexpr size_t kSizes[] = {0, 8, 16, 120, 128, 136, 2040, 2048, 2056, 4096, 65536, 65544};

Block Generate(uint64_t seed, uint64_t id, size_t bytes) {
  Block block(bytes);
  GenerateBlock(seed, id, absl::MakeSpan(block));
  return block;
}

TEST(BlockGeneratorTest, RightBlocksHaveNoWrongByte) {
  for (size_t bytes : kSizes) {
    for (uint64_t id : {uint64_t{0}, uint64_t{1}, UINT64_MAX}) {
      EXPECT_EQ(FirstWrongByte(kSeed, id, Generate(kSeed, id, bytes)), std::nullopt) << bytes;
    }
  }
}

TEST(BlockGeneratorTest, WritesWithinTheBlockOnly) {
  for (size_t bytes : kSizes) {
    Block block(bytes + 256, std::byte{0xee});
    GenerateBlock(kSeed, 1, absl::MakeSpan(block).subspan(0, bytes));
    for (size_t i = bytes; i < block.size(); ++i) ASSERT_EQ(block[i], std::byte{0xee});
  }
}

TEST(BlockGeneratorTest, FindsEveryFlippedBit) {
  Block block = Generate(kSeed, 7, 2048 + 136);
  for (size_t bit = 0; bit < block.size() * 8; ++bit) {
    block[bit / 8] ^= std::byte{1} << (bit % 8);
    ASSERT_EQ(FirstWrongByte(kSeed, 7, block), bit / 8);
    block[bit / 8] ^= std::byte{1} << (bit % 8);
  }
}

TEST(BlockGeneratorTest, FindsBytesOfAnotherPlaceIdOrSeed) {
  const Block block = Generate(kSeed, 7, 65536);
  for (size_t shift : {size_t{8}, size_t{128}, size_t{2048}, size_t{4096}}) {
    EXPECT_TRUE(FirstWrongByte(kSeed, 7, absl::MakeConstSpan(block).subspan(shift)).has_value());
  }
  Block swapped = block;
  std::memcpy(swapped.data() + 8192, block.data() + 12288, 4096);
  EXPECT_GE(FirstWrongByte(kSeed, 7, swapped), 8192);
  EXPECT_LT(FirstWrongByte(kSeed, 7, swapped), 8200);
  EXPECT_LT(FirstWrongByte(kSeed, 8, block).value_or(65536), 8);
  EXPECT_LT(FirstWrongByte(kSeed + 1, 7, block).value_or(65536), 8);
  EXPECT_TRUE(FirstWrongByte(kSeed, 7, Block(65536)).has_value());
}

TEST(BlockGeneratorTest, AShorterBlockIsAPrefix) {
  const Block longest = Generate(kSeed, 3, 65544);
  for (size_t bytes : kSizes) {
    EXPECT_EQ(Generate(kSeed, 3, bytes), Block(longest.begin(), longest.begin() + bytes));
  }
}

TEST(BlockGeneratorTest, NoWordComesTwice) {
  std::unordered_set<uint64_t> words;
  size_t count = 0;
  for (uint64_t seed : {0, 1}) {
    for (uint64_t id = 0; id < 100; ++id) {
      const Block block = Generate(seed, id, 8192);
      for (size_t i = 0; i < block.size(); i += 8, ++count) {
        uint64_t word = 0;
        std::memcpy(&word, block.data() + i, 8);
        words.insert(word);
      }
    }
  }
  EXPECT_EQ(words.size(), count);
}

TEST(BlockGeneratorTest, BytesAreUniform) {
  constexpr size_t kBytes = 1 << 20;
  std::array<size_t, 256> counts = {};
  for (std::byte byte : Generate(kSeed, 11, kBytes)) ++counts[static_cast<size_t>(byte)];
  double entropy_bits = 0;
  for (size_t count : counts) {
    const double share = static_cast<double>(count) / kBytes;
    entropy_bits -= share * std::log2(share);
  }
  EXPECT_GT(entropy_bits, 7.999);
}

// Blocks stay in a tier's files between runs, so other bytes would make them look damaged.
TEST(BlockGeneratorTest, BytesNeverChange) {
  const Block block = Generate(1, 2, 4096);
  uint64_t digest = 0xcbf29ce484222325;  // FNV-1a
  for (std::byte byte : block) {
    digest = (digest ^ static_cast<uint64_t>(byte)) * 0x100000001b3;
  }
  EXPECT_EQ(digest, 13599644452188881602u);
}

}  // namespace
}  // namespace terrace
