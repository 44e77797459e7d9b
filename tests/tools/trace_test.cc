#include "tools/trace.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace terrace {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;

constexpr char kGood[] =
    R"({"timestamp": 7, "input_length": 1100, "output_length": 50, "hash_ids": [0, 1, 2]})";

std::string ErrorOf(const absl::Status& status) {
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  return std::string(status.message());
}

std::string LineError(absl::string_view line) {
  TraceLine request;
  return ErrorOf(ParseTraceLine(line, request));
}

// A good line but for the value of one field.
std::string LineWith(absl::string_view field, absl::string_view value) {
  std::string line = "{\"extra\": 1";
  for (absl::string_view name : {"timestamp", "input_length", "output_length", "hash_ids"}) {
    const absl::string_view good = name == "hash_ids" ? "[1, 2]" : "10";
    absl::StrAppend(&line, ", \"", name, "\": ", name == field ? value : good);
  }
  return line + "}";
}

class TraceFileTest : public ::testing::Test {
 protected:
  TraceFileTest() {
    std::string name = absl::StrCat(::testing::TempDir(), "/terrace_trace_XXXXXX");
    const int fd = ::mkstemp(name.data());
    EXPECT_GE(fd, 0);
    ::close(fd);
    path_ = name;
  }
  ~TraceFileTest() override { ::unlink(path_.c_str()); }

  absl::StatusOr<Trace> Read(const std::string& content, const TraceReadOptions& options = {}) {
    std::ofstream(path_, std::ios::binary) << content;
    return ReadTrace(path_, options);
  }

  std::string FileError(const std::string& content, const TraceReadOptions& options = {}) {
    const std::string error = ErrorOf(Read(content, options).status());
    EXPECT_THAT(error, StartsWith(path_));
    return error.substr(path_.size());
  }

  std::string path_;
};

TEST(ParseTraceLineTest, ReadsAllFields) {
  TraceLine request;
  ASSERT_TRUE(ParseTraceLine(kGood, request).ok());
  EXPECT_EQ(request.timestamp_ms, 7);
  EXPECT_EQ(request.input_length, 1100);
  EXPECT_EQ(request.output_length, 50);
  EXPECT_THAT(request.hash_ids, ElementsAre(0, 1, 2));
}

TEST(ParseTraceLineTest, OverwritesWhatWasThere) {
  TraceLine request;
  ASSERT_TRUE(ParseTraceLine(kGood, request).ok());
  ASSERT_TRUE(ParseTraceLine(LineWith("hash_ids", "[]"), request).ok());
  EXPECT_EQ(request.timestamp_ms, 10);
  EXPECT_THAT(request.hash_ids, IsEmpty());
}

TEST(ParseTraceLineTest, TakesFieldsInAnyOrderAndIgnoresUnknownOnes) {
  TraceLine request;
  const absl::Status status = ParseTraceLine(
      R"( {"a": {"hash_ids": [-1, {"timestamp": 1.5}], "b": null}, "hash_ids": [5, 5],)"
      R"( "output_length": 0, "c": [true, "x", [[]]], "input_length": 0, "timestamp": -0} )",
      request);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(request.timestamp_ms, 0);
  EXPECT_THAT(request.hash_ids, ElementsAre(5, 5));
}

TEST(ParseTraceLineTest, TakesTheLimits) {
  TraceLine request;
  ASSERT_TRUE(ParseTraceLine(LineWith("hash_ids", "[9223372036854775807]"), request).ok());
  EXPECT_THAT(request.hash_ids, ElementsAre(kMaxTraceHashId));
  ASSERT_TRUE(ParseTraceLine(LineWith("input_length", "2147483647"), request).ok());
  EXPECT_EQ(request.input_length, kMaxTraceTokens);
  ASSERT_TRUE(ParseTraceLine(LineWith("timestamp", "9223372036854775807"), request).ok());
  EXPECT_EQ(request.timestamp_ms, INT64_MAX);
}

TEST(ParseTraceLineTest, NamesTheElementThatIsWrong) {
  EXPECT_EQ(LineError(LineWith("hash_ids", "[1, 2, 3, -7]")),
            "field \"hash_ids\": element 3 is -7, expected an integer from 0 to "
            "9223372036854775807");
  EXPECT_THAT(LineError(LineWith("hash_ids", "[1.0]")), HasSubstr("element 0 is 1.0,"));
  EXPECT_THAT(LineError(LineWith("hash_ids", "[[1]]")), HasSubstr("element 0 is an array,"));
  EXPECT_THAT(LineError(LineWith("hash_ids", "[0, {}]")), HasSubstr("element 1 is an object,"));
  EXPECT_THAT(LineError(LineWith("hash_ids", "[\"1\"]")), HasSubstr("element 0 is a string,"));
  EXPECT_THAT(LineError(LineWith("hash_ids", "[null]")), HasSubstr("element 0 is null,"));
  EXPECT_THAT(LineError(LineWith("hash_ids", "[9223372036854775808]")),
              HasSubstr("element 0 is 9223372036854775808,"));
  EXPECT_THAT(LineError(LineWith("hash_ids", "[99999999999999999999999]")),
              HasSubstr("element 0 is 99999999999999999999999,"));
}

TEST(ParseTraceLineTest, NamesTheFieldOfAWrongValue) {
  EXPECT_EQ(LineError(LineWith("hash_ids", "7")),
            "field \"hash_ids\" is 7, expected an array of integers");
  EXPECT_EQ(LineError(LineWith("hash_ids", "{}")),
            "field \"hash_ids\" is an object, expected an array of integers");
  EXPECT_EQ(LineError(LineWith("timestamp", "-1")),
            "field \"timestamp\" is -1, expected an integer from 0 to 9223372036854775807");
  for (absl::string_view field : {"timestamp", "input_length", "output_length"}) {
    for (absl::string_view value : {"-1", "1.5", "1e3", "9223372036854775808", "\"1\"", "true",
                                    "null", "[1]", "{\"a\": 1}", "-9223372036854775808"}) {
      EXPECT_THAT(LineError(LineWith(field, value)),
                  AllOf(StartsWith(absl::StrCat("field \"", field, "\" is ")),
                        HasSubstr("expected an integer from 0 to ")));
    }
  }
  EXPECT_THAT(LineError(LineWith("output_length", "2147483648")),
              HasSubstr("is 2147483648, expected an integer from 0 to 2147483647"));
}

TEST(ParseTraceLineTest, RefusesMissingAndDuplicateFields) {
  EXPECT_EQ(LineError("{}"), "field \"timestamp\" is missing");
  EXPECT_EQ(LineError(R"({"timestamp": 0, "input_length": 1, "output_length": 1})"),
            "field \"hash_ids\" is missing");
  EXPECT_EQ(LineError(R"({"timestamp": 0, "timestamp": 0})"), "field \"timestamp\" appears twice");
  // An escape does not make it another field.
  EXPECT_EQ(LineError(R"({"timestamp": 0, "t\u0069mestamp": 0})"),
            "field \"timestamp\" appears twice");
}

TEST(ParseTraceLineTest, SaysThatALineSeemsTruncated) {
  const std::string line = kGood;
  for (size_t bytes = 1; bytes < line.size(); ++bytes) {
    EXPECT_THAT(LineError(line.substr(0, bytes)), StartsWith("the line seems truncated: it ends "))
        << bytes;
  }
  EXPECT_THAT(LineError(line.substr(0, line.size() - 3)), HasSubstr("field \"hash_ids\""));
}

TEST(ParseTraceLineTest, SaysWhereALineIsNoJson) {
  EXPECT_THAT(
      LineError(R"({"timestamp": abc})"),
      AllOf(StartsWith("not valid JSON"), HasSubstr("\"timestamp\""), HasSubstr("byte 15")));
  EXPECT_THAT(LineError(absl::StrCat(kGood, " {}")), StartsWith("not valid JSON"));
  EXPECT_THAT(LineError(LineWith("hash_ids", "[1 2]")), StartsWith("not valid JSON"));
  EXPECT_THAT(LineError(LineWith("hash_ids", "[1,]")), StartsWith("not valid JSON"));
  EXPECT_THAT(LineError(LineWith("timestamp", "007")), StartsWith("not valid JSON"));
  EXPECT_THAT(LineError("{\"timestamp\": 1, \"\xff\": 2}"), StartsWith("not valid JSON"));
}

TEST(ParseTraceLineTest, RefusesWhatIsNoObject) {
  for (absl::string_view line :
       {"[1]", "7", "\"x\"", "null", "timestamp,input_length", "\xef\xbb\xbf{}"}) {
    EXPECT_THAT(LineError(line), StartsWith("expected a JSON object, found \"")) << line;
  }
}

TEST(ParseTraceLineTest, NamesANulByte) {
  std::string line = kGood;
  line[11] = '\0';
  EXPECT_EQ(LineError(line), "byte 12 of the line is NUL");
  EXPECT_THAT(LineError(std::string(kGood) + '\0'), HasSubstr("is NUL"));
}

TEST(ParseTraceLineTest, BoundsNestingInUnknownFields) {
  const auto nested = [](int levels) {
    return absl::StrCat("{\"x\": ", std::string(levels, '['), std::string(levels, ']'), ", ",
                        std::string(kGood).substr(1));
  };
  TraceLine request;
  EXPECT_TRUE(ParseTraceLine(nested(63), request).ok());
  EXPECT_EQ(LineError(nested(64)), "field \"x\" is nested deeper than 64 levels");
  EXPECT_THAT(LineError(nested(1 << 20)), HasSubstr("is nested deeper"));
}

TEST(ParseTraceLineTest, KeepsErrorsShortAndPrintable) {
  const std::string error = LineError(
      absl::StrCat("{\"", std::string(1 << 20, 'x'), "\": \x01 \xff", std::string(1 << 20, 'y')));
  EXPECT_LT(error.size(), 500);
  for (char c : error) EXPECT_TRUE(c >= ' ' && c <= '~') << error;
}

TEST(AppendTraceLineTest, WritesWhatParseReads) {
  TraceLine request;
  request.timestamp_ms = 12;
  request.input_length = 3;
  request.output_length = 4;
  request.hash_ids = {8, kMaxTraceHashId};
  std::string text;
  AppendTraceLine(request, text);
  EXPECT_EQ(text,
            "{\"timestamp\": 12, \"input_length\": 3, \"output_length\": 4, \"hash_ids\": [8, "
            "9223372036854775807]}\n");
  TraceLine again;
  ASSERT_TRUE(ParseTraceLine(text, again).ok());
  EXPECT_EQ(again.hash_ids, request.hash_ids);
}

TEST_F(TraceFileTest, KeepsEveryRequest) {
  absl::StatusOr<Trace> trace =
      Read(absl::StrCat(kGood, "\n", LineWith("hash_ids", "[]"), "\n", LineWith("", ""), "\n"));
  ASSERT_TRUE(trace.ok()) << trace.status();
  const Trace moved = *std::move(trace);
  ASSERT_EQ(moved.requests().size(), 3);
  EXPECT_THAT(moved.hash_ids(moved.requests()[0]), ElementsAre(0, 1, 2));
  EXPECT_THAT(moved.hash_ids(moved.requests()[1]), IsEmpty());
  EXPECT_THAT(moved.hash_ids(moved.requests()[2]), ElementsAre(1, 2));
  EXPECT_EQ(moved.requests()[0].timestamp_ms, 7);
  EXPECT_EQ(moved.requests()[0].input_length, 1100);
  EXPECT_EQ(moved.requests()[0].output_length, 50);
  EXPECT_EQ(moved.block_refs(), 5);
  EXPECT_EQ(moved.skipped_lines(), 0);
}

TEST_F(TraceFileTest, AcceptsOtherPeoplesLineEnds) {
  for (const std::string& content :
       {std::string(kGood), absl::StrCat("\xef\xbb\xbf", kGood, "\n"), absl::StrCat(kGood, "\r\n"),
        absl::StrCat(kGood, "\n\n \t\r\n\n"), absl::StrCat("\xef\xbb\xbf", kGood)}) {
    absl::StatusOr<Trace> trace = Read(content);
    ASSERT_TRUE(trace.ok()) << trace.status();
    EXPECT_EQ(trace->requests().size(), 1);
    EXPECT_EQ(trace->skipped_lines(), 0);
  }
}

TEST_F(TraceFileTest, NamesFileLineAndField) {
  EXPECT_EQ(FileError(absl::StrCat(kGood, "\n", LineWith("hash_ids", "[-7]"), "\n")),
            ":2: field \"hash_ids\": element 0 is -7, expected an integer from 0 to "
            "9223372036854775807");
  EXPECT_EQ(FileError(absl::StrCat(kGood, "\n\n", kGood, "\n")),
            ":2: the line is blank, expected a JSON object");
  EXPECT_THAT(FileError(absl::StrCat(kGood, "\n{\"timestamp\": 1")),
              StartsWith(":2: the line seems truncated"));
  std::string with_nul = absl::StrCat(kGood, "\n", kGood);
  with_nul.back() = '\0';
  EXPECT_THAT(FileError(with_nul), AllOf(StartsWith(":2: byte "), HasSubstr("is NUL")));
}

TEST_F(TraceFileTest, SkipsAndCountsBadLinesWhenAsked) {
  TraceReadOptions options;
  options.skip_bad_lines = true;
  options.max_line_bytes = 200;
  absl::StatusOr<Trace> trace = Read(absl::StrCat("junk\n\n\n", kGood, "\n", std::string(5000, 'x'),
                                                  "\n", kGood, "\n{\"timestamp\": 1"),
                                     options);
  ASSERT_TRUE(trace.ok()) << trace.status();
  EXPECT_EQ(trace->requests().size(), 2);
  EXPECT_EQ(trace->skipped_lines(), 5);
  EXPECT_EQ(FileError("junk\njunk\n", options), ": holds no requests (2 bad lines skipped)");
}

TEST_F(TraceFileTest, StopsAfterMaxRequests) {
  TraceReadOptions options;
  options.max_requests = 2;
  absl::StatusOr<Trace> trace =
      Read(absl::StrCat(kGood, "\n", kGood, "\n", "what comes later is not looked at"), options);
  ASSERT_TRUE(trace.ok()) << trace.status();
  EXPECT_EQ(trace->requests().size(), 2);
}

TEST_F(TraceFileTest, BoundsLinesAndIds) {
  TraceReadOptions options;
  options.max_line_bytes = sizeof(kGood) - 1;
  EXPECT_TRUE(Read(kGood, options).ok());
  EXPECT_TRUE(Read(absl::StrCat(kGood, "\n"), options).ok());
  const std::string too_long =
      absl::StrCat(": the line is longer than ", options.max_line_bytes, " bytes");
  EXPECT_EQ(FileError(absl::StrCat(kGood, " "), options), ":1" + too_long);
  EXPECT_EQ(FileError(absl::StrCat(kGood, "\n", kGood, " \n"), options), ":2" + too_long);
  EXPECT_EQ(FileError(std::string(10 << 20, ' '), options), ":1" + too_long);

  options = {};
  options.max_block_refs = 5;
  EXPECT_EQ(FileError(absl::StrCat(kGood, "\n", kGood, "\n"), options),
            ":2: field \"hash_ids\": the trace has more than 5 ids, the limit");
}

TEST_F(TraceFileTest, ReadsLinesLongerThanOneChunk) {
  std::string ids = "[0";
  for (int i = 1; i < 600'000; ++i) absl::StrAppend(&ids, ", ", i);
  const std::string line = LineWith("hash_ids", ids + "]");
  ASSERT_GT(line.size(), 4 << 20);
  absl::StatusOr<Trace> trace = Read(absl::StrCat(kGood, "\n", line, "\n", line, "\n", kGood));
  ASSERT_TRUE(trace.ok()) << trace.status();
  ASSERT_EQ(trace->requests().size(), 4);
  EXPECT_EQ(trace->block_refs(), 1'200'006);
  EXPECT_EQ(trace->hash_ids(trace->requests()[2])[599'999], 599'999);
}

TEST_F(TraceFileTest, SaysWhatAFileIsThatIsNoTrace) {
  EXPECT_EQ(FileError(""), ": holds no requests");
  EXPECT_EQ(FileError("\n\n"), ": holds no requests");
  EXPECT_EQ(FileError("\xef\xbb\xbf"), ": holds no requests");
  EXPECT_EQ(FileError("\x1f\x8b\x08 rest"), ": is gzip-compressed; decompress it first");
  EXPECT_EQ(FileError("\x28\xb5\x2f\xfd rest"), ": is zstd-compressed; decompress it first");
  EXPECT_THAT(ErrorOf(ReadTrace(::testing::TempDir()).status()), HasSubstr("is a directory"));
}

TEST_F(TraceFileTest, SaysWhyAFileCannotBeOpened) {
  const absl::Status missing = ReadTrace(path_ + ".none").status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.message()),
              AllOf(StartsWith(path_ + ".none: cannot open"), HasSubstr("No such file")));
}

TEST_F(TraceFileTest, SaysThatAFileMayNotBeRead) {
  if (::geteuid() == 0) GTEST_SKIP() << "root may read everything";
  ASSERT_EQ(::chmod(path_.c_str(), 0), 0);
  EXPECT_EQ(ReadTrace(path_).status().code(), absl::StatusCode::kPermissionDenied);
}

TEST_F(TraceFileTest, ReadsFromAPipe) {
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  const std::string text = absl::StrCat(kGood, "\n");
  ASSERT_EQ(::write(ends[1], text.data(), text.size()), static_cast<ssize_t>(text.size()));
  ::close(ends[1]);
  absl::StatusOr<Trace> trace = ReadTrace(absl::StrCat("/proc/self/fd/", ends[0]));
  ::close(ends[0]);
  ASSERT_TRUE(trace.ok()) << trace.status();
  EXPECT_EQ(trace->requests().size(), 1);
}

}  // namespace
}  // namespace terrace
