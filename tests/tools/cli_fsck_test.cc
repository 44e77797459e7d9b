// terrace fsck from outside: exit codes, messages, the report, and files it must not touch.

#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "io/checksum.h"
#include "nlohmann/json.hpp"
#include "tests/support/temp_dir.h"
#include "tests/support/tier_fixture.h"
#include "tests/tools/terrace_program.h"
#include "tiers/nvme_format.h"
#include "tiers/tier_manager.h"

namespace terrace {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr size_t kBlock = 16 << 10;
constexpr uint64_t kNvme = 4 << 20;
constexpr uint64_t kBlocks = 80;

class CliFsckTest : public ::testing::Test {
 protected:
  TierManagerOptions Options(bool reuse) const {
    TierManagerOptions options = TestTierOptions(kBlock, {.dram_slots = 8, .nvme_bytes = kNvme});
    options.nvme_dir = dir_.path();
    options.reuse = reuse;
    return options;
  }
  std::unique_ptr<TierManager> MakeTier() {
    auto manager = TierManager::Open(Options(false));
    EXPECT_TRUE(manager.ok()) << manager.status();
    for (uint64_t number = 0; number < kBlocks; ++number) {
      const std::vector<std::byte> bytes = BlockBytes(TestId(number), kBlock);
      const BlockWrite write = {.id = TestId(number),
                                .bytes = bytes,
                                .retention = number == 7 ? Retention::kOwned : Retention::kCached};
      EXPECT_TRUE((*manager)->Put({&write, 1}).ok());
    }
    EXPECT_TRUE((*manager)->Flush().ok());
    (*manager)->Drop(TestIds(9, 1));
    EXPECT_TRUE((*manager)->Flush().ok());
    offset_ = (*manager)->NvmeOffset(TestId(7)).value_or(0);
    return *std::move(manager);
  }

  RunResult Fsck(const Arguments& more = {}) const {
    Arguments arguments = {"fsck", "--dir", dir_.path(), "--json", json_path_};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return RunTerrace(arguments);
  }
  nlohmann::json Json() const {
    std::ifstream file(json_path_);
    return nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
  }
  std::string File() const { return dir_.Join("terrace.kv"); }
  std::string FileBytes() const {
    std::ifstream file(File(), std::ios::binary);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  }
  void FlipBit(uint64_t offset) const {
    std::fstream file(File(), std::ios::binary | std::ios::in | std::ios::out);
    file.seekg(static_cast<std::streamoff>(offset));
    const char byte = static_cast<char>(file.get());
    file.seekp(static_cast<std::streamoff>(offset));
    file.put(static_cast<char>(byte ^ 0x10));
  }

  const TempDir dir_;
  const TempDir results_;
  const std::string json_path_ = results_.Join("result.json");
  uint64_t offset_ = 0;  // of block 7
};

void ExpectFailure(const RunResult& run, int exit_code, const std::vector<std::string>& parts) {
  EXPECT_EQ(run.exit_code, exit_code) << run.err << "signal " << run.signal;
  EXPECT_THAT(run.out, IsEmpty());
  for (const std::string& part : parts) EXPECT_THAT(run.err, HasSubstr(part));
  EXPECT_LT(run.err.size(), 1000) << "a sentence, not a flood";
}

TEST_F(CliFsckTest, HelpListsEveryFlag) {
  for (const char* help : {"--help", "-h"}) {
    const RunResult run = RunTerrace({"fsck", help});
    EXPECT_EQ(run.exit_code, 0);
    EXPECT_THAT(run.err, IsEmpty());
    EXPECT_THAT(run.out, AllOf(HasSubstr("--dir"), HasSubstr("--repair"), HasSubstr("--json"),
                               HasSubstr("Exit status"), HasSubstr("STILL DAMAGED"),
                               HasSubstr("locked by another process")));
  }
  EXPECT_THAT(RunTerrace({"--help"}).out, HasSubstr("fsck"));
}

TEST_F(CliFsckTest, BadUsageIsNamed) {
  ExpectFailure(RunTerrace({"fsck"}), 2, {"--dir"});
  ExpectFailure(RunTerrace({"fsck", "--dir"}), 2, {"--dir"});
  ExpectFailure(RunTerrace({"fsck", "--dir", ""}), 2, {"--dir"});
  ExpectFailure(Fsck({"--mend"}), 2, {"--mend"});
  ExpectFailure(Fsck({"stray"}), 2, {"stray"});
}

TEST_F(CliFsckTest, WhatIsNotThereOrNoTierIsNamedAndLeftAlone) {
  for (const Arguments& repair : {Arguments{}, Arguments{"--repair"}}) {
    std::filesystem::remove(File());
    ExpectFailure(Fsck(repair), 1, {File(), "No such file"});
    EXPECT_FALSE(std::filesystem::exists(File())) << "fsck makes no file";
    Arguments absent = {"fsck", "--dir", dir_.Join("absent")};
    absent.insert(absent.end(), repair.begin(), repair.end());
    ExpectFailure(RunTerrace(absent), 1, {dir_.Join("absent"), "No such file"});
    for (const size_t length : {5, 5000, 1 << 20}) {
      std::ofstream(File(), std::ios::binary | std::ios::trunc) << std::string(length, 'x');
      ExpectFailure(Fsck(repair), 1, {File(), "not a tier file"});
      EXPECT_EQ(FileBytes(), std::string(length, 'x'));
    }
    std::ofstream(File(), std::ios::binary | std::ios::trunc);
    EXPECT_EQ(Fsck(repair).exit_code, 1);
    EXPECT_EQ(FileBytes(), "");
  }
  EXPECT_FALSE(std::filesystem::exists(json_path_));
}

TEST_F(CliFsckTest, AnotherFormatVersionIsRefusedAndUntouched) {
  MakeTier().reset();
  std::string bytes = FileBytes();
  for (const size_t copy : {0, 1}) {
    std::byte* const page = reinterpret_cast<std::byte*>(bytes.data()) + copy * kPageBytes;
    page[24] = std::byte{kNvmeFormatVersion + 1};  // behind checksum, magic number and epoch
    const uint64_t checksum =
        Checksum64(absl::MakeConstSpan(page, kPageBytes).subspan(sizeof(uint64_t)));
    std::memcpy(page, &checksum, sizeof(checksum));
  }
  std::ofstream(File(), std::ios::binary | std::ios::trunc) << bytes;
  for (const Arguments& repair : {Arguments{}, Arguments{"--repair"}}) {
    ExpectFailure(Fsck(repair), 1, {File(), "format version"});
    EXPECT_EQ(FileBytes(), bytes);
  }
}

TEST_F(CliFsckTest, ATierInUseIsRefused) {
  const auto manager = MakeTier();
  for (const Arguments& repair : {Arguments{}, Arguments{"--repair"}}) {
    ExpectFailure(Fsck(repair), 1, {File(), "locked by another process"});
  }
}

TEST_F(CliFsckTest, ACleanTierIsReportedAndNotTouched) {
  MakeTier().reset();
  const std::string before = FileBytes();
  const auto written = std::filesystem::last_write_time(File());
  for (const Arguments& repair : {Arguments{}, Arguments{"--repair"}}) {
    const RunResult run = Fsck(repair);
    EXPECT_EQ(run.exit_code, 0) << run.err;
    EXPECT_THAT(run.err, IsEmpty());
    EXPECT_THAT(run.out, AllOf(HasSubstr(File()), HasSubstr("Clean")));
    EXPECT_EQ(FileBytes(), before);
    EXPECT_EQ(std::filesystem::last_write_time(File()), written);
    const nlohmann::json json = Json();
    EXPECT_EQ(json["path"], File());
    EXPECT_EQ(json["format_version"], kNvmeFormatVersion);
    EXPECT_EQ(json["block_bytes"], kBlock);
    EXPECT_EQ(json["capacity_bytes"], before.size());
    EXPECT_EQ(json["segments"]["total"].get<int>(), json["segments"]["free"].get<int>() +
                                                        json["segments"]["sealed"].get<int>() +
                                                        json["segments"]["unsealed"].get<int>());
    EXPECT_GT(json["segments"]["sealed"], 0);
    EXPECT_EQ(json["blocks"]["live"], kBlocks - 1);
    EXPECT_EQ(json["blocks"]["owned"], 1);
    EXPECT_EQ(json["blocks"]["cached"], kBlocks - 2);
    EXPECT_EQ(json["blocks"]["encrypted"], 0);
    EXPECT_EQ(json["blocks"]["stale_copies"], 0);
    EXPECT_EQ(json["blocks"]["dead"], 1);
    EXPECT_EQ(json["bytes_checked"], (kBlocks - 1) * kBlock);
    EXPECT_EQ(json["unfinished_groups"], 0);
    EXPECT_EQ(json["damage"], nlohmann::json::array());
    EXPECT_EQ(json["damaged_blocks"], 0);
    EXPECT_EQ(json["repaired"], false);
    EXPECT_EQ(json["clean"], true);
    EXPECT_TRUE(json["seconds"].is_number_float());
  }
}

TEST_F(CliFsckTest, DamageIsReportedAndMendedOnRequestOnly) {
  MakeTier().reset();
  FlipBit(offset_ + 5000);
  FlipBit(kPageBytes + 9);
  const std::string before = FileBytes();
  const RunResult found = Fsck();
  EXPECT_EQ(found.exit_code, 1);
  EXPECT_THAT(found.err, AllOf(HasSubstr(File()), HasSubstr("2 damages")));
  EXPECT_THAT(found.out, AllOf(HasSubstr("DAMAGED"), HasSubstr("--repair"), HasSubstr("owned"),
                               HasSubstr("superblock")));
  EXPECT_EQ(FileBytes(), before) << "without --repair nothing is written";
  const nlohmann::json json = Json();
  EXPECT_EQ(json["clean"], false);
  EXPECT_EQ(json["repaired"], false);
  EXPECT_EQ(json["damaged_blocks"], 1);
  ASSERT_EQ(json["damage"].size(), 2);
  EXPECT_EQ(json["damage"][0]["kind"], "superblock");
  EXPECT_EQ(json["damage"][0]["offset"], kPageBytes);
  EXPECT_EQ(json["damage"][0]["segment"], nullptr);
  const nlohmann::json& block = json["damage"][1];
  EXPECT_EQ(block["kind"], "block");
  EXPECT_EQ(block["offset"], offset_);
  EXPECT_EQ(block["id"], "0000000000007e570000000000000007");
  EXPECT_EQ(block["first_damaged_page"], 1);
  EXPECT_EQ(block["retention"], "owned");
  EXPECT_TRUE(block["segment"].is_number_unsigned());
  EXPECT_THAT(block["detail"].get<std::string>(), HasSubstr("page 1"));

  const RunResult mended = Fsck({"--repair"});
  EXPECT_EQ(mended.exit_code, 0) << mended.err;
  EXPECT_THAT(mended.out, HasSubstr("Mended"));
  EXPECT_EQ(Json()["repaired"], true);
  EXPECT_EQ(Json()["clean"], true);
  EXPECT_EQ(Json()["damage"].size(), 2);
  EXPECT_EQ(Json()["blocks"]["live"], kBlocks - 2);
  EXPECT_EQ(Fsck().exit_code, 0);
  auto manager = TierManager::Open(Options(true));
  ASSERT_TRUE(manager.ok()) << manager.status();
  EXPECT_EQ((*manager)->Find(TestId(7)), std::nullopt);
  EXPECT_NE((*manager)->Find(TestId(8)), std::nullopt);
}

TEST_F(CliFsckTest, ATruncatedFileIsDamageAndIsMendedWithoutWhatItLost) {
  MakeTier().reset();
  const uint64_t bytes = FileBytes().size();
  std::filesystem::resize_file(File(), offset_ + kPageBytes);
  EXPECT_EQ(Fsck().exit_code, 1);
  EXPECT_EQ(Json()["clean"], false);
  const RunResult mended = Fsck({"--repair"});
  EXPECT_EQ(mended.exit_code, 0) << mended.err;
  EXPECT_EQ(FileBytes().size(), bytes);
  auto manager = TierManager::Open(Options(true));
  ASSERT_TRUE(manager.ok()) << manager.status();
  EXPECT_NE((*manager)->Find(TestId(0)), std::nullopt);
  EXPECT_EQ((*manager)->Find(TestId(7)), std::nullopt);
}

TEST_F(CliFsckTest, AFileThatIsTooLongIsDamageAndIsCut) {
  MakeTier().reset();
  const std::string before = FileBytes();
  for (const uint64_t more : {uint64_t{1} << 20, uint64_t{5}}) {
    SCOPED_TRACE(more);
    std::filesystem::resize_file(File(), before.size() + more);
    EXPECT_EQ(Fsck().exit_code, 1);
    EXPECT_EQ(Json()["damage"][0]["kind"], "file");
    EXPECT_EQ(FileBytes().size(), before.size() + more);
    const RunResult mended = Fsck({"--repair"});
    EXPECT_EQ(mended.exit_code, 0) << mended.err;
    EXPECT_THAT(mended.out, HasSubstr("Mended"));
    EXPECT_TRUE(FileBytes() == before);
    EXPECT_EQ(Fsck().exit_code, 0);
  }
  EXPECT_TRUE(TierManager::Open(Options(true)).ok());
}

TEST_F(CliFsckTest, TheTierIsNoPlaceForTheResult) {
  MakeTier().reset();
  const std::string before = FileBytes();
  const std::string link = results_.Join("link");
  std::filesystem::create_symlink(File(), link);
  for (const std::string& path : {File(), link}) {
    ExpectFailure(RunTerrace({"fsck", "--dir", dir_.path(), "--json", path}), 1,
                  {"--json", path, "same file"});
    EXPECT_TRUE(FileBytes() == before);
  }
}

TEST_F(CliFsckTest, ResultsThatCannotBeWrittenAreFailures) {
  MakeTier().reset();
  const std::string absent = results_.Join("absent/file");
  ExpectFailure(RunTerrace({"fsck", "--dir", dir_.path(), "--json", absent}), 1,
                {"--json", absent, "No such file"});
  RunOptions full;
  full.stdout_path = "/dev/full";
  const RunResult lost = RunTerrace({"fsck", "--dir", dir_.path()}, full);
  EXPECT_EQ(lost.exit_code, 1);
  EXPECT_THAT(lost.err, AllOf(HasSubstr("standard output"), HasSubstr("No space left")));
}

}  // namespace
}  // namespace terrace
