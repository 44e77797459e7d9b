#include "runtime/bundle_shape.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

namespace terrace {
namespace {

using ::testing::HasSubstr;

BundleShape Small() {
  BundleShape shape;
  shape.layers = 3;
  shape.experts = 2;
  shape.neurons = 11;
  shape.width = 256;
  shape.group_neurons = 2;
  return shape;
}

TEST(BundleShapeTest, PublishedShapeHasItsSizes) {
  BundleShape opt;  // of OPT-6.7B
  opt.layers = 32;
  opt.neurons = 16384;
  opt.width = 4096;
  opt.gated = false;
  ASSERT_TRUE(opt.Validate().ok());
  EXPECT_EQ(opt.bundle_bytes(), 16384);
  EXPECT_EQ(opt.group_bytes(), 16384);
  EXPECT_EQ(opt.data_bytes(), uint64_t{8} << 30);
  EXPECT_EQ(opt.padding_share(), 0);
  EXPECT_EQ(BundleShape::AutoGroupNeurons(opt.bundle_bytes()), 1);
  // A bundle of the trained model in the tests, of 1,536 bytes: two in a page.
  EXPECT_EQ(BundleShape::AutoGroupNeurons(1536), 2);
  EXPECT_EQ(BundleShape::AutoGroupNeurons(4097), 3);
}

TEST(BundleShapeTest, PiecesCoverTheGroupsWithoutOverlap) {
  for (const BundleLayout layout :
       {BundleLayout::kBundled, BundleLayout::kGateFirst, BundleLayout::kUnbundled}) {
    for (const bool gated : {false, true}) {
      BundleShape shape = Small();
      shape.layout = layout;
      shape.gated = gated;
      ASSERT_TRUE(shape.Validate().ok());
      std::set<uint64_t> pages;
      uint32_t parts = 0;
      for (uint32_t piece = 0; piece < shape.pieces(); ++piece) {
        EXPECT_EQ(shape.first_part(piece), parts);
        parts += shape.parts_in(piece);
        for (uint32_t unit = 0; unit < shape.units(); ++unit) {
          for (uint32_t group = 0; group < shape.groups(); ++group) {
            const uint64_t offset = shape.PieceOffset(unit, group, piece);
            EXPECT_EQ(shape.PositionOf(offset), (BundlePosition{unit, group, piece}));
            for (uint64_t at = 0; at < shape.piece_bytes(piece); at += kPageBytes) {
              EXPECT_TRUE(pages.insert(offset + at).second);
            }
          }
        }
      }
      EXPECT_EQ(parts, shape.parts());
      EXPECT_EQ(*pages.begin(), BundleShape::kDataOffset);
      EXPECT_EQ(*pages.rbegin() + kPageBytes, shape.data_end());
      EXPECT_EQ(pages.size() * kPageBytes, shape.data_bytes());
    }
  }
}

TEST(BundleShapeTest, BadFieldsAreNamed) {
  const auto message = [](auto change) {
    BundleShape shape = Small();
    change(shape);
    return std::string(shape.Validate().message());
  };
  EXPECT_THAT(message([](BundleShape& s) { s.layers = 0; }), HasSubstr("layers: 0"));
  EXPECT_THAT(message([](BundleShape& s) { s.experts = 5000; }), HasSubstr("experts: 5000"));
  EXPECT_THAT(message([](BundleShape& s) { s.neurons = 0; }), HasSubstr("neurons: 0"));
  EXPECT_THAT(message([](BundleShape& s) { s.width = 1u << 21; }), HasSubstr("width"));
  EXPECT_THAT(message([](BundleShape& s) { s.group_neurons = 12; }),
              HasSubstr("group_neurons: 12"));
  EXPECT_THAT(message([](BundleShape& s) {
                s.layers = s.experts = 4096;
                s.neurons = 1u << 24;
                s.width = 1u << 20;
              }),
              HasSubstr("neurons of all layers"));
  EXPECT_THAT(message([](BundleShape& s) {
                s.neurons = s.group_neurons = 4096;
                s.width = 1u << 20;
              }),
              HasSubstr("bytes of a group"));
  EXPECT_THAT(message([](BundleShape& s) {
                s.neurons = 1u << 24;
                s.layers = 1;
                s.width = 1u << 20;
              }),
              HasSubstr("bytes"));
}

}  // namespace
}  // namespace terrace
