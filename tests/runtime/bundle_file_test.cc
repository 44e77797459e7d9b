#include "runtime/bundle_file.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "io/aligned_buffer.h"
#include "runtime/bundle_header.h"
#include "runtime/bundle_writer.h"
#include "tests/support/made_up_bundles.h"
#include "tests/support/temp_dir.h"

namespace terrace {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

BundleShape Small(BundleLayout layout = BundleLayout::kBundled) {
  BundleShape shape;
  shape.layers = 2;
  shape.experts = 2;
  shape.neurons = 7;
  shape.width = 200;
  shape.group_neurons = 3;
  shape.layout = layout;
  return shape;
}

std::vector<std::byte> ReadAll(const std::string& path) {
  std::vector<std::byte> bytes(std::filesystem::file_size(path));
  std::ifstream(path, std::ios::binary)
      .read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  return bytes;
}

void WriteAll(const std::string& path, absl::Span<const std::byte> bytes) {
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes.data()),
             static_cast<std::streamsize>(bytes.size()));
}

class BundleFileTest : public ::testing::Test {
 protected:
  const std::string& Write(const BundleShape& shape) {
    const absl::Status status = WriteMadeUpBundles(path_, shape, MadeUpTables(shape));
    EXPECT_TRUE(status.ok()) << status;
    return path_;
  }
  // What opening says of the file with other bytes.
  absl::Status OpenWith(absl::Span<const std::byte> bytes) {
    WriteAll(path_, bytes);
    return BundleFile::Open(path_).status();
  }

  TempDir dir_;
  const std::string path_ = dir_.Join("model.bundles");
};

TEST_F(BundleFileTest, KeepsShapeTablesAndEveryBundle) {
  for (const BundleLayout layout :
       {BundleLayout::kBundled, BundleLayout::kGateFirst, BundleLayout::kUnbundled}) {
    for (const bool gated : {false, true}) {
      SCOPED_TRACE(BundleLayoutName(layout));
      BundleShape shape = Small(layout);
      shape.gated = gated;
      const auto file = BundleFile::Open(Write(shape));
      ASSERT_TRUE(file.ok()) << file.status();
      const BundleTables tables = MadeUpTables(shape);
      EXPECT_EQ((*file)->shape(), shape);
      EXPECT_EQ((*file)->tables().order, tables.order);
      EXPECT_EQ((*file)->tables().frequency, tables.frequency);
      EXPECT_EQ((*file)->tables().false_negative_bound, 0.25);
      EXPECT_EQ((*file)->NeuronAt(1, 0), 6);
      EXPECT_EQ((*file)->PlacesOf(1)[6], 0);
      ASSERT_NE((*file)->Predictor(3), nullptr);
      EXPECT_EQ((*file)->Predictor(3)->b, tables.predictors[3].b);
      EXPECT_TRUE((*file)->CheckModel(tables.model_fingerprint).ok());

      const std::vector<std::byte> bytes = ReadAll(path_);
      ASSERT_EQ(bytes.size(), (*file)->file_bytes());
      for (uint32_t unit = 0; unit < shape.units(); ++unit) {
        for (uint32_t place = 0; place < shape.neurons; ++place) {
          size_t index = 0;  // into the bundle
          for (uint32_t piece = 0; piece < shape.pieces(); ++piece) {
            const uint64_t offset = shape.PieceOffset(unit, shape.group_of(place), piece);
            const size_t row = place % shape.group_neurons * shape.row_bytes(piece);
            for (size_t i = 0; i < shape.row_bytes(piece); ++i) {
              ASSERT_EQ(bytes[offset + row + i], MadeUpByte(unit, place, index++));
            }
          }
          ASSERT_EQ(index, shape.bundle_bytes());
        }
      }
      const auto all =
          absl::MakeConstSpan(bytes).subspan(BundleShape::kDataOffset, shape.data_bytes());
      EXPECT_TRUE((*file)->Verify(BundleShape::kDataOffset, all).ok());
    }
  }
}

TEST_F(BundleFileTest, TablesMayBeAbsent) {
  const BundleShape shape = Small();
  ASSERT_TRUE(WriteMadeUpBundles(path_, shape, BundleTables{}).ok());
  const auto file = BundleFile::Open(path_);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->NeuronAt(2, 5), 5);
  EXPECT_TRUE((*file)->Frequency(0).empty());
  EXPECT_EQ((*file)->Predictor(0), nullptr);
}

TEST_F(BundleFileTest, LargeFilesAreWrittenInManyRuns) {
  BundleShape shape;
  shape.layers = 3;
  shape.neurons = 3001;
  shape.width = 1024;
  const auto file = BundleFile::Open(Write(shape));
  ASSERT_TRUE(file.ok()) << file.status();
  const std::vector<std::byte> bytes = ReadAll(path_);
  EXPECT_EQ(bytes[shape.GroupOffset(2, 3000) + 17], MadeUpByte(2, 3000, 17));
  EXPECT_EQ(bytes[shape.GroupOffset(1, 1500) + 6143], MadeUpByte(1, 1500, 6143));
}

TEST_F(BundleFileTest, AWrongPageIsNamed) {
  const BundleShape shape = Small(BundleLayout::kUnbundled);
  const auto file = BundleFile::Open(Write(shape));
  ASSERT_TRUE(file.ok()) << file.status();
  std::vector<std::byte> bytes = ReadAll(path_);
  const uint64_t offset = shape.PieceOffset(/*unit=*/3, /*group=*/2, /*piece=*/1);
  const auto piece = absl::MakeSpan(bytes).subspan(offset, kPageBytes);
  EXPECT_TRUE((*file)->Verify(offset, piece).ok());
  piece[100] ^= std::byte{1};
  const absl::Status status = (*file)->Verify(offset, piece);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr(path_), HasSubstr(std::to_string(offset)),
                    HasSubstr("layer 1, expert 1, group 2")));
}

TEST_F(BundleFileTest, EveryTruncationIsNoticed) {
  const std::vector<std::byte> bytes = ReadAll(Write(Small()));
  for (size_t size = 0; size < bytes.size(); size += size < 64 ? 1 : 509) {
    const absl::Status status = OpenWith(absl::MakeConstSpan(bytes).first(size));
    ASSERT_FALSE(status.ok()) << size;
    ASSERT_THAT(std::string(status.message()), HasSubstr(path_)) << size;
  }
  const absl::Status one_less = OpenWith(absl::MakeConstSpan(bytes).first(bytes.size() - 1));
  EXPECT_FALSE(one_less.ok());
  const absl::Status page_less =
      OpenWith(absl::MakeConstSpan(bytes).first(bytes.size() - kPageBytes));
  EXPECT_THAT(std::string(page_less.message()), HasSubstr("truncated?"));
}

TEST_F(BundleFileTest, EveryWrongByteOfHeaderAndTablesIsNoticed) {
  const BundleShape shape = Small();
  const std::vector<std::byte> bytes = ReadAll(Write(shape));
  const auto header = DecodeBundleHeader(absl::MakeConstSpan(bytes).first(kPageBytes));
  ASSERT_TRUE(header.ok());
  std::vector<size_t> places;
  for (size_t at = 0; at < kPageBytes; at += at < 256 ? 1 : 97) places.push_back(at);
  for (const BundleExtent& extent : header->tables) {
    for (size_t i = 0; i < extent.bytes; i += 61) places.push_back(extent.offset + i);
  }
  for (const size_t at : places) {
    std::vector<std::byte> changed = bytes;
    changed[at] ^= std::byte{0x10};
    ASSERT_FALSE(OpenWith(changed).ok()) << at;
  }
}

TEST_F(BundleFileTest, OtherFilesAndVersionsAreRefused) {
  EXPECT_EQ(BundleFile::Open(path_).status().code(), absl::StatusCode::kNotFound);
  std::vector<std::byte> bytes(3 * kPageBytes, std::byte{7});
  EXPECT_THAT(std::string(OpenWith(bytes).message()), HasSubstr("not a bundle file"));
  bytes = ReadAll(Write(Small()));
  bytes[16] = std::byte{9};
  EXPECT_THAT(std::string(OpenWith(bytes).message()), HasSubstr("version 9"));
}

TEST_F(BundleFileTest, AnotherModelIsRefused) {
  const auto file = BundleFile::Open(Write(Small()));
  ASSERT_TRUE(file.ok());
  const absl::Status status = (*file)->CheckModel(0x42);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("1234567890abcdef"), HasSubstr("0000000000000042")));
}

TEST_F(BundleFileTest, BadTablesAreNamed) {
  const BundleShape shape = Small();
  const auto message = [&](auto change) {
    BundleTables tables = MadeUpTables(shape);
    change(tables);
    return std::string(WriteMadeUpBundles(path_, shape, tables).message());
  };
  EXPECT_THAT(message([](BundleTables& t) { t.order[8] = t.order[9]; }), HasSubstr("twice"));
  EXPECT_THAT(message([](BundleTables& t) { t.order[8] = 7; }), HasSubstr("out of range"));
  EXPECT_THAT(message([](BundleTables& t) { t.order.pop_back(); }), HasSubstr("entries"));
  EXPECT_THAT(message([](BundleTables& t) { t.frequency[3] = 2; }), HasSubstr("frequencies"));
  EXPECT_THAT(message([](BundleTables& t) { t.predictors[1].b.pop_back(); }), HasSubstr("rank 3"));
  EXPECT_THAT(message([](BundleTables& t) { t.predictors[1].a[0] = 0x7c00; }), HasSubstr("finite"));
  EXPECT_FALSE(std::filesystem::exists(path_));
}

TEST_F(BundleFileTest, AFailingSourceLeavesNothingBehind) {
  const BundleShape shape = Small();
  ASSERT_TRUE(WriteMadeUpBundles(path_, shape, BundleTables{}).ok());
  const std::vector<std::byte> before = ReadAll(path_);
  const absl::Status status = WriteBundleFile(
      path_, shape, BundleTables{}, [&](const BundleRun& run, absl::Span<std::byte> bundles) {
        if (run.unit == 2) return absl::DataLossError("no more rows");
        return FillMadeUpBundles(shape, run, bundles);
      });
  EXPECT_THAT(std::string(status.message()), HasSubstr("no more rows"));
  EXPECT_EQ(ReadAll(path_), before);
  EXPECT_FALSE(std::filesystem::exists(path_ + ".new"));
}

TEST_F(BundleFileTest, NoRoomIsAnErrorAndLeavesNothingBehind) {
  rlimit old_limit = {};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &old_limit), 0);
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit limit = old_limit;
  limit.rlim_cur = 3 * kPageBytes;
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &limit), 0);
  const absl::Status status = WriteMadeUpBundles(path_, Small(), BundleTables{});
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &old_limit), 0);
  std::signal(SIGXFSZ, old_handler);
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()), HasSubstr(path_));
  EXPECT_FALSE(std::filesystem::exists(path_));
  EXPECT_FALSE(std::filesystem::exists(path_ + ".new"));
}

}  // namespace
}  // namespace terrace
