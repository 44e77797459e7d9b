#include "tools/table.h"

#include <cstdint>
#include <limits>

#include "gtest/gtest.h"

namespace terrace {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

TEST(TableTest, AlignsColumns) {
  Table table({{"tier", Align::kLeft}, {"blocks"}, {"share"}});
  table.AddRow({"HBM", "1,024", "4.45 %"});
  table.AddRow({"DRAM", "7"});
  EXPECT_EQ(table.ToString(),
            "tier  blocks   share\n"
            "HBM    1,024  4.45 %\n"
            "DRAM       7\n");
}

TEST(TableTest, LeavesOutAnEmptyHeader) {
  Table table({{"", Align::kLeft}, {""}});
  table.AddRow({"requests", "12"});
  table.AddRow({"wall", "1 s"});
  EXPECT_EQ(table.ToString(), "requests   12\nwall      1 s\n");
}

TEST(TableTest, CountsCharactersNotBytes) {
  Table table({{"", Align::kLeft}, {""}});
  table.AddRow({"\xc2\xb5", "1"});
  table.AddRow({"ab", "2"});
  EXPECT_EQ(table.ToString(), "\xc2\xb5   1\nab  2\n");
}

TEST(FormatTest, Counts) {
  EXPECT_EQ(FormatCount(0), "0");
  EXPECT_EQ(FormatCount(999), "999");
  EXPECT_EQ(FormatCount(1000), "1,000");
  EXPECT_EQ(FormatCount(288500), "288,500");
  EXPECT_EQ(FormatCount(UINT64_MAX), "18,446,744,073,709,551,615");
  EXPECT_EQ(FormatMicroseconds(1250), "1,250 us");
}

TEST(FormatTest, SecondsStaySeconds) {
  EXPECT_EQ(FormatSeconds(0), "0.000 s");
  EXPECT_EQ(FormatSeconds(12.3456), "12.346 s");
  EXPECT_EQ(FormatSeconds(0.0123456), "0.012346 s");
  EXPECT_EQ(FormatSeconds(0.000123), "0.000123000 s");
  EXPECT_EQ(FormatSeconds(kInfinity), "-");
}

TEST(FormatTest, RatesHaveThreeDigits) {
  EXPECT_EQ(FormatRate(0), "0 B/s");
  EXPECT_EQ(FormatRate(999.4), "999 B/s");
  EXPECT_EQ(FormatRate(999.9), "1.00 kB/s");
  EXPECT_EQ(FormatRate(1.234e9), "1.23 GB/s");
  EXPECT_EQ(FormatRate(12.34e6), "12.3 MB/s");
  EXPECT_EQ(FormatRate(456e6), "456 MB/s");
  EXPECT_EQ(FormatRate(9.996e6), "10.0 MB/s");
  EXPECT_EQ(FormatRate(5e15), "5000 TB/s");
  EXPECT_EQ(FormatRate(kInfinity), "-");
}

TEST(FormatTest, Percentages) {
  EXPECT_EQ(FormatPercent(0.3664), "36.64 %");
  EXPECT_EQ(FormatPercent(0), "0.00 %");
  EXPECT_EQ(FormatPercent(std::numeric_limits<double>::quiet_NaN()), "-");
}

}  // namespace
}  // namespace terrace
