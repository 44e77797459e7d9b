#include "tools/ssd_report.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tools/ssd_plot.h"

namespace terrace {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

SsdRow Row(const char* op, uint64_t block_bytes, size_t depth, uint64_t requests) {
  SsdRow row;
  row.options.op = *ParseSsdOp(op);
  row.options.block_bytes = block_bytes;
  row.options.depth = depth;
  row.reads = requests;
  row.seconds = 2;
  row.cpu_seconds = 0.5;
  row.latency.Record(absl::Microseconds(100));
  return row;
}

SsdReport Report() {
  SsdReport report;
  report.rows = {Row("randread", 4096, 1, 20'000), Row("randread", 4096, 8, 100'000),
                 Row("randread", 131072, 1, 10'000), Row("randread", 131072, 8, 20'000),
                 Row("mixed:70", 131072, 8, 5'000)};
  report.device.direct_io = true;
  report.device.depth = 64;
  report.source = "/dev/a<b>&\"c\"";
  report.filesystem = "ext4";
  report.kernel = "Linux 6";
  return report;
}

size_t Count(const std::string& text, const std::string& part) {
  size_t count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

TEST(SsdReportTest, JsonHasTheFieldsPromised) {
  const nlohmann::json json = SsdJson(Report());
  for (const char* field : {"results", "engine", "device", "filesystem", "kernel"}) {
    EXPECT_TRUE(json.contains(field)) << field;
  }
  ASSERT_EQ(json["results"].size(), 5);
  const nlohmann::json& row = json["results"][1];
  EXPECT_EQ(row["op"], "randread");
  EXPECT_EQ(row["block_bytes"], 4096);
  EXPECT_EQ(row["depth"], 8);
  EXPECT_EQ(row["iops"], 50'000);
  EXPECT_EQ(row["bytes_per_second"], 50'000.0 * 4096);
  EXPECT_NEAR(row["cpu_seconds_per_gb"], 0.5 / 0.4096, 1e-9);
  EXPECT_NEAR(row["latency_us"]["p99"], 100, 4);
  EXPECT_EQ(row["errors"], 0);
}

TEST(SsdReportTest, ErrorsAreNamedByRow) {
  SsdReport report = Report();
  report.rows[2].errors = 7;
  report.rows[2].first_error = absl::DataLossError("disk: read, offset 12288");
  EXPECT_EQ(report.errors(), 7);
  EXPECT_THAT(SsdText(report), HasSubstr("randread, 128 KiB blocks, depth 1: 7 requests failed, "
                                         "first disk: read, offset 12288"));
  EXPECT_EQ(SsdJson(report)["results"][2]["first_error"], "disk: read, offset 12288");
}

TEST(SsdReportTest, PageCacheIsNoDisk) {
  SsdReport report = Report();
  EXPECT_THAT(SsdText(report), Not(HasSubstr("page cache")));
  report.device.direct_io = false;
  EXPECT_THAT(SsdText(report), HasSubstr("page cache"));
}

TEST(SsdReportTest, TheEngineStandsAboveTheTable) {
  SsdReport report = Report();
  report.device.engine = IoEngine::kThreads;
  report.device.engine_reason = "io_uring is not available: no";
  const std::string text = SsdText(report);
  EXPECT_LT(text.find("Engine threads (io_uring is not available: no"), text.find("bandwidth"));
  EXPECT_EQ(SsdJson(report)["engine"], "threads");
  EXPECT_EQ(SsdJson(report)["engine_reason"], "io_uring is not available: no");
}

TEST(SsdReportTest, InterruptedRunSaysHowManyRowsAreComplete) {
  SsdReport report = Report();
  report.planned_rows = report.rows.size();
  EXPECT_THAT(SsdText(report), Not(HasSubstr("Interrupted")));
  EXPECT_EQ(SsdJson(report)["interrupted"], false);
  report.planned_rows = 32;
  EXPECT_THAT(SsdText(report), HasSubstr("Interrupted: only 5 of 32 rows are complete"));
  EXPECT_EQ(SsdJson(report)["interrupted"], true);
  report.rows.clear();
  EXPECT_THAT(SsdText(report), HasSubstr("Interrupted before the first row was complete"));
  EXPECT_THAT(SsdText(report), Not(HasSubstr("bandwidth")));
  EXPECT_EQ(SsdJson(report)["results"], nlohmann::json::array());
}

TEST(SsdReportTest, AdviceFollowsFromRandomReads) {
  const std::string advice = SsdAdvice(SsdProfile(Report()));
  EXPECT_THAT(advice, HasSubstr("at least 128 KiB at a time with 8 reads in flight"));
  EXPECT_THAT(SsdAdvice(DeviceProfile()), HasSubstr("add --op randread"));
}

TEST(SsdPlotTest, ShowsEverySeriesInBothPanels) {
  const std::string svg = SsdPlot(SsdProfile(Report()));
  for (const char* name : {"randread 4 KiB", "randread 128 KiB", "mixed:70 128 KiB"}) {
    EXPECT_THAT(svg, HasSubstr(name));
  }
  EXPECT_EQ(Count(svg, "<polyline"), 3 * 3) << "two panels and the legend";
  EXPECT_EQ(Count(svg, "<circle"), 2 * 5);
  EXPECT_THAT(svg, HasSubstr("/dev/a&lt;b&gt;&amp;&quot;c&quot;"));
  EXPECT_THAT(svg, HasSubstr("depth (requests in flight)"));
  EXPECT_EQ(Count(svg, "nan") + Count(svg, "inf\""), 0);
}

TEST(SsdPlotTest, IsWellFormed) {
  for (const DeviceProfile& profile : {SsdProfile(Report()), DeviceProfile()}) {
    const std::string svg = SsdPlot(profile);
    EXPECT_EQ(svg.find("<svg "), 0);
    EXPECT_EQ(Count(svg, "<text"), Count(svg, "</text>"));
    EXPECT_EQ(
        Count(svg, "<polyline") + Count(svg, "<circle") + Count(svg, "<line") + Count(svg, "<rect"),
        Count(svg, "/>"));
    EXPECT_EQ(Count(svg, "\"") % 2, 0);
    EXPECT_EQ(svg.substr(svg.size() - 7), "</svg>\n");
  }
}

TEST(SsdPlotTest, DepthsThatLieCloseShareALabel) {
  SsdReport report = Report();
  for (size_t depth = 1; depth <= 64; ++depth) {
    report.rows.push_back(Row("randread", 4096, depth, 1'000));
  }
  const std::string svg = SsdPlot(SsdProfile(report));
  for (const char* label : {">2<", ">4<", ">8<"}) EXPECT_EQ(Count(svg, label), 2) << label;
  for (const char* label : {">7<", ">9<", ">64<"}) EXPECT_EQ(Count(svg, label), 0) << label;
  EXPECT_EQ(Count(svg, "x1=\"480.0\""), 1) << "every depth has its line";
}

TEST(SsdPlotTest, LatencyAxisNamesItsUnits) {
  SsdReport report = Report();
  report.rows[0].latency.Record(absl::Milliseconds(3));
  report.rows[1].latency.Record(absl::Seconds(2));
  const std::string svg = SsdPlot(SsdProfile(report));
  for (const char* label : {">100 us<", ">200 us<", ">1 ms<", ">500 ms<", ">1 s<", ">5 s<"}) {
    EXPECT_EQ(Count(svg, label), 1) << label;
  }
  for (const char* label : {">50 us<", ">10 s<"}) EXPECT_EQ(Count(svg, label), 0) << label;
}

}  // namespace
}  // namespace terrace
