#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <vector>

#include "absl/types/span.h"
#include "index/graph_index.h"

// What a graph saves, and what becomes of it.
namespace terrace {
namespace {

constexpr size_t kHeadDim = 16;
constexpr size_t kKeys = 3000;

std::vector<float> Rows(size_t rows, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> elements(rows * kHeadDim);
  for (float& element : elements) element = normal(random);
  return elements;
}

class GraphIndexSaveTest : public testing::Test {
 protected:
  KeyPanels Panels(size_t count) const {
    return KeyPanels::Contiguous(keys_.data(), count, kHeadDim, KvDtype::kFloat32);
  }
  static KeySearchResult Found(const KeyIndex& index) {
    KeySearchResult result;
    EXPECT_TRUE(index.Search(Rows(8, 3), {.k = 20, .effort = 40}, result).ok());
    return result;
  }

  const std::vector<float> keys_ = Rows(2 * kKeys, 1);
  ComputePool pool_{2};
};

TEST_F(GraphIndexSaveTest, GoesOnAsTheOriginalWithKeysThatMoved) {
  const auto original = *MakeGraphIndex({});
  ASSERT_TRUE(original->Build(Panels(kKeys), Rows(500, 2), pool_).ok());
  ASSERT_TRUE(original->Append(Panels(kKeys + 500), pool_).ok());  // a tail
  std::vector<std::byte> bytes = {std::byte{7}};
  original->Save(bytes);
  const auto loaded = *MakeGraphIndex({});
  ASSERT_TRUE(loaded->Load(absl::MakeConstSpan(bytes).subspan(1), Panels(kKeys + 500)).ok());
  EXPECT_EQ(loaded->size(), original->size());
  EXPECT_EQ(Found(*loaded).keys, Found(*original).keys);

  const std::vector<float> moved = keys_;
  const auto panels = KeyPanels::Contiguous(moved.data(), 2 * kKeys, kHeadDim, KvDtype::kFloat32);
  ASSERT_TRUE(loaded->Append(panels, pool_).ok());  // which links
  ASSERT_TRUE(original->Append(Panels(2 * kKeys), pool_).ok());
  const KeySearchResult found = Found(*loaded);
  EXPECT_EQ(found.keys, Found(*original).keys);
  EXPECT_EQ(found.scored_keys, Found(*original).scored_keys);
}

TEST_F(GraphIndexSaveTest, AnEmptyOneIsEmptyAgain) {
  for (const bool built : {false, true}) {
    const auto original = *MakeGraphIndex({});
    if (built) {
      ASSERT_TRUE(original->Build(Panels(0), {}, pool_).ok());
    }
    std::vector<std::byte> bytes;
    original->Save(bytes);
    const auto loaded = *MakeGraphIndex({});
    ASSERT_TRUE(loaded->Load(bytes, Panels(0)).ok());
    EXPECT_EQ(loaded->size(), 0u);
  }
}

TEST_F(GraphIndexSaveTest, DamagedBytesAreRefusedAndLeaveItEmpty) {
  const auto original = *MakeGraphIndex({});
  ASSERT_TRUE(original->Build(Panels(kKeys), Rows(500, 2), pool_).ok());
  std::vector<std::byte> bytes;
  original->Save(bytes);
  const auto loaded = *MakeGraphIndex({});
  for (size_t at = 0; at < bytes.size(); at += 1 + bytes.size() / 97) {
    std::vector<std::byte> damaged = bytes;
    damaged[at] ^= std::byte{0x10};
    EXPECT_TRUE(absl::IsDataLoss(loaded->Load(damaged, Panels(kKeys)))) << "byte " << at;
    EXPECT_EQ(loaded->size(), 0u);
    EXPECT_FALSE(loaded->Load(absl::MakeConstSpan(bytes).first(at), Panels(kKeys)).ok());
  }
  EXPECT_TRUE(loaded->Load(bytes, Panels(kKeys)).ok());
}

TEST_F(GraphIndexSaveTest, OtherKeysAndOptionsAreRefused) {
  const auto original = *MakeGraphIndex({});
  ASSERT_TRUE(original->Build(Panels(kKeys), Rows(500, 2), pool_).ok());
  std::vector<std::byte> bytes;
  original->Save(bytes);
  EXPECT_TRUE(absl::IsInvalidArgument((*MakeGraphIndex({}))->Load(bytes, Panels(kKeys - 1))));
  EXPECT_TRUE(
      absl::IsInvalidArgument((*MakeGraphIndex({.degree = 16}))->Load(bytes, Panels(kKeys))));
}

}  // namespace
}  // namespace terrace
