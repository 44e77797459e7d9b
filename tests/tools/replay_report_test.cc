#include "tools/replay_report.h"

#include <limits>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace terrace {
namespace {

using ::testing::AllOf;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using ::testing::Not;

ReplayReport ExampleReport() {
  ReplayReport report;
  report.result.requests = 1'200;
  report.result.block_refs = 10'000;
  report.result.reused_blocks = 2'500;
  report.result.computed_blocks = 7'500;
  report.result.hits = {1'000, 900, 600};
  report.result.wall_seconds = 12.5;
  report.result.fetch_seconds = 3.25;
  for (int i = 1; i <= 1000; ++i) report.result.fetch_latency.Record(absl::Microseconds(i));
  report.tiers.tiers[0] = {.capacity_bytes = 64u << 20, .slots = 1024, .blocks = 1023};
  report.tiers.tiers[1] = {.capacity_bytes = 256u << 20, .slots = 4096, .blocks = 4000};
  report.tiers.tiers[2] = {.capacity_bytes = 2u << 30, .slots = 30'000, .blocks = 20'000};
  report.tiers.nvme_read_bytes = 3u << 20;
  report.tiers.nvme_written_bytes = 5u << 20;
  report.tiers.hbm_copied_bytes = 7u << 20;
  report.tiers.nvme_peak_bytes = 1u << 30;
  report.tiers.nvme_health = NvmeHealth::kHealthy;
  report.tiers.device.path = "/dir/terrace.kv";
  report.tiers.device.engine = IoEngine::kThreads;
  report.tiers.device.engine_reason = "asked for";
  report.tiers.device.engine_setup = "64 threads";
  report.tiers.device.direct_reason = "the filesystem refuses it";
  report.tiers.copy_engine = "host (HBM emulated)";
  report.usage = {.read_bytes = 3'145'900, .write_bytes = 5'242'900, .peak_memory_bytes = 1u << 29};
  report.options.block_bytes = 65536;
  report.tiers.device.depth = 32;
  report.options.coalesce_gap_bytes = 12u << 10;
  report.options.coalesce_read_bytes = 96u << 10;
  report.tokens_per_block = 512;
  return report;
}

TEST(ReplayJsonTest, HasEveryDocumentedFieldWithItsType) {
  const nlohmann::ordered_json json = ReplayJson(ExampleReport());
  for (const char* pointer :
       {"/requests", "/block_refs", "/reused_blocks", "/computed_blocks", "/hits/hbm", "/hits/dram",
        "/hits/nvme", "/corrupt_blocks", "/lost_blocks", "/bytes/nvme_read", "/bytes/nvme_written",
        "/bytes/hbm_copied", "/nvme_capacity_bytes", "/nvme_peak_bytes", "/fetch_latency_us/p50",
        "/fetch_latency_us/p99", "/fetch_latency_us/p999"}) {
    const nlohmann::ordered_json::json_pointer at{std::string(pointer)};
    ASSERT_TRUE(json.contains(at)) << pointer;
    EXPECT_TRUE(json.at(at).is_number_unsigned()) << pointer;
  }
  EXPECT_TRUE(json["wall_seconds"].is_number_float());
  EXPECT_TRUE(json["engine"].is_string());
  EXPECT_TRUE(json["interrupted"].is_boolean());
}

TEST(ReplayJsonTest, HasTheValuesOfTheReport) {
  const nlohmann::ordered_json json = ReplayJson(ExampleReport());
  EXPECT_EQ(json["requests"], 1'200);
  EXPECT_EQ(json["hits"]["hbm"], 1'000);
  EXPECT_EQ(json["hits"]["dram"], 900);
  EXPECT_EQ(json["hits"]["nvme"], 600);
  EXPECT_EQ(json["bytes"]["nvme_read"], 3u << 20);
  EXPECT_EQ(json["bytes"]["nvme_written"], 5u << 20);
  EXPECT_EQ(json["bytes"]["hbm_copied"], 7u << 20);
  EXPECT_EQ(json["kernel_io"]["read_bytes"], 3'145'900);
  EXPECT_EQ(json["nvme_capacity_bytes"], 2u << 30);
  EXPECT_EQ(json["nvme_peak_bytes"], 1u << 30);
  EXPECT_NEAR(json["fetch_latency_us"]["p50"].get<double>(), 500, 20);
  EXPECT_NEAR(json["fetch_latency_us"]["p99"].get<double>(), 990, 35);
  EXPECT_NEAR(json["fetch_latency_us"]["p999"].get<double>(), 999, 35);
  EXPECT_EQ(json["engine"], "threads");
  EXPECT_EQ(json["interrupted"], false);
  EXPECT_EQ(json["nvme_error"], "");
}

TEST(ReplayJsonTest, SaysWhyTheNvmeTierStopped) {
  ReplayReport report = ExampleReport();
  report.tiers.nvme_error = absl::DataLossError("/dir/file: cannot write");
  EXPECT_EQ(ReplayJson(report)["nvme_error"], "/dir/file: cannot write");
}

TEST(ReplayJsonTest, KeepsLargeCountsWhole) {
  ReplayReport report = ExampleReport();
  report.tiers.nvme_written_bytes = std::numeric_limits<uint64_t>::max();
  EXPECT_EQ(ReplayJson(report)["bytes"]["nvme_written"].get<uint64_t>(),
            std::numeric_limits<uint64_t>::max());
}

TEST(ReplayJsonTest, NamesNoEngineWithoutAnNvmeTier) {
  ReplayReport report = ExampleReport();
  report.tiers.nvme_health = NvmeHealth::kAbsent;
  EXPECT_EQ(ReplayJson(report)["engine"], "none");
  EXPECT_THAT(ReplayText(report), ContainsRegex("NVMe engine +none\n"));
}

TEST(ReplayTextTest, IsATableThatAPersonCanRead) {
  EXPECT_THAT(
      ReplayText(ExampleReport()),
      AllOf(HasSubstr("1,200 requests, 10,000 blocks of 512 tokens (64 KiB)"),
            ContainsRegex("HBM +64 MiB +1,023 +1,000 +10.00 %\n"),
            ContainsRegex("DRAM +256 MiB +4,000 +900 +9.00 %\n"),
            ContainsRegex("NVMe +2 GiB +20,000 +600 +6.00 %\n"),
            ContainsRegex("reused +2,500 +25.00 %\n"), ContainsRegex("computed +7,500 +75.00 %\n"),
            HasSubstr("2,500 blocks verified byte for byte: 0 corrupt, 0 lost"),
            HasSubstr("12.500 s, of which 3.250 s fetching"),
            HasSubstr("3 MiB read, 5 MiB written"), HasSubstr("at most 1 GiB of 2 GiB in use"),
            HasSubstr("threads (asked for; 64 threads)"),
            HasSubstr("page cache (the filesystem refuses it)"),
            HasSubstr("host (HBM emulated), 7 MiB copied")));
}

TEST(ReplayTextTest, SaysWhatItMeansAndNothingOfTroublesThereWereNone) {
  EXPECT_THAT(
      ReplayText(ExampleReport()),
      AllOf(HasSubstr("25.00 % of the prompt blocks came out of a tier"),
            HasSubstr("15.00 % from below HBM"), HasSubstr("every byte of them as it was stored."),
            Not(HasSubstr("skipped")), Not(HasSubstr("stopped")), Not(HasSubstr("flushes")),
            Not(HasSubstr("partial")), Not(HasSubstr("no room"))));
}

TEST(ReplayReportTest, SaysHowTheDiskIsRead) {
  ReplayReport report = ExampleReport();
  EXPECT_THAT(ReplayText(report),
              AllOf(HasSubstr("threads (asked for; 64 threads), page cache"),
                    HasSubstr("up to 32 requests at once; gaps of up to 12 KiB are read along in "
                              "requests of up to 96 KiB")));
  const nlohmann::ordered_json json = ReplayJson(report);
  EXPECT_EQ(json["engine_setup"], "64 threads");
  EXPECT_EQ(json["io_depth"], 32);
  EXPECT_EQ(json["coalesce_gap_bytes"], 12u << 10);
  EXPECT_EQ(json["coalesce_read_bytes"], 96u << 10);

  report.options.coalesce_read_bytes = 0;
  EXPECT_THAT(ReplayText(report), HasSubstr("up to 32 requests at once, a block each"));
  report.tiers.device.path.clear();
  EXPECT_THAT(ReplayText(report), Not(HasSubstr("requests at once")));
}

TEST(ReplayTextTest, MentionsWhatWentWrong) {
  ReplayReport report = ExampleReport();
  report.skipped_lines = 3;
  report.result.interrupted = true;
  report.result.unstored_blocks = 4;
  report.result.corrupt_blocks = 5;
  report.result.failed_flushes = 2;
  report.result.flush_error = absl::DataLossError("sync failed");
  EXPECT_THAT(ReplayText(report), AllOf(HasSubstr("3 bad trace lines were skipped"),
                                        HasSubstr("Interrupted: the figures are partial"),
                                        HasSubstr("4 blocks found no room"), HasSubstr("5 corrupt"),
                                        HasSubstr("SOME OF THEM WRONG"),
                                        HasSubstr("2 flushes failed"), HasSubstr("sync failed")));
  report.tiers.nvme_error = absl::ResourceExhaustedError("disk full");
  EXPECT_THAT(ReplayText(report), HasSubstr("The NVMe tier stopped taking blocks: disk full"));
}

TEST(ReplayTextTest, HasNoShareOfNothing) {
  EXPECT_THAT(ReplayText(ReplayReport()),
              AllOf(HasSubstr("0 requests"), Not(HasSubstr("nan")), Not(HasSubstr("inf"))));
}

TEST(ReplayTextTest, SaysWhatReopeningFound) {
  ReplayReport report = ExampleReport();
  report.options.reuse = true;
  report.tiers.recovery.blocks = 1'234;
  EXPECT_THAT(ReplayText(report), AllOf(HasSubstr("1,234 blocks in"), Not(HasSubstr("DAMAGED"))));
  report.tiers.recovery.damaged_manifests = 2;
  EXPECT_THAT(ReplayText(report),
              HasSubstr("; 2 damaged manifest copies; DAMAGED, see terrace fsck"));
  EXPECT_EQ(ReplayJson(report)["recovery"]["damaged_manifests"], 2);
}

TEST(ReplayTextTest, NamesTheModelWhereThereIsOne) {
  ReplayReport report = ExampleReport();
  report.model = "llama-3.1-8b (64 MiB a block) at scale 1/1024";
  EXPECT_THAT(ReplayText(report),
              HasSubstr("(64 KiB, llama-3.1-8b (64 MiB a block) at scale 1/1024)"));
  EXPECT_EQ(ReplayJson(report)["model"], report.model);
}

TEST(ReplayProgressTest, ShowsTheShareDoneAndTheTimeLeft) {
  ReplayResult result = ExampleReport().result;
  EXPECT_THAT(ReplayProgressText(result, /*total_requests=*/3'600, /*block_bytes=*/65536),
              AllOf(HasSubstr("1,200/3,600 requests"), HasSubstr("HBM 10.00 %"),
                    HasSubstr("0.05 GB/s"), HasSubstr("25 s left")));
  EXPECT_THAT(ReplayProgressText(ReplayResult(), 10, 65536),
              AllOf(HasSubstr("0/10 requests"), Not(HasSubstr("nan")), Not(HasSubstr("inf"))));
}

TEST(ProcessUsageTest, KnowsThatThisProcessUsesMemory) {
  const ProcessUsage before = ProcessUsage::Now();
  ASSERT_GT(before.peak_memory_bytes, 0);
  const std::vector<char> touched(64u << 20, 'x');
  EXPECT_GE(ProcessUsage::Now().peak_memory_bytes, touched.size());
}

}  // namespace
}  // namespace terrace
