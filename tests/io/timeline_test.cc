#include "io/timeline.h"

#include <algorithm>
#include <atomic>
#include <fstream>
#include <map>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/barrier.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/support/temp_dir.h"
#include "tests/support/trace_events.h"

namespace terrace {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;

std::shared_ptr<Timeline> Make(size_t max_events = 1000) {
  auto timeline = Timeline::Create(max_events);
  EXPECT_TRUE(timeline.ok()) << timeline.status();
  return *std::move(timeline);
}

TEST(TimelineTest, SpansHaveNameTimesAndArguments) {
  const auto timeline = Make();
  timeline->NameThread("main");
  const int64_t begin = Timeline::Now();
  timeline->Record("lookup", begin, begin + 1'234'567, {"layer", 3}, {"bytes", uint64_t{1} << 40});
  timeline->Record("bare", begin + 2'000'000, begin + 2'000'005);
  const Json json = Written(*timeline, "terrace 1.2.3");
  EXPECT_THAT(json["otherData"]["program"].get<std::string>(), "terrace 1.2.3");
  EXPECT_EQ(json["otherData"]["recorded_events"], 2);
  EXPECT_EQ(json["otherData"]["dropped_events"], 0);
  const std::vector<Json> spans = Events(json, "X");
  ASSERT_EQ(spans.size(), 2u);
  EXPECT_EQ(spans[0]["name"], "lookup");
  EXPECT_EQ(Nanoseconds(spans[0]["dur"]), 1'234'567);
  EXPECT_EQ(spans[0]["args"], (Json{{"layer", 3}, {"bytes", uint64_t{1} << 40}}));
  EXPECT_EQ(Nanoseconds(spans[1]["ts"]) - Nanoseconds(spans[0]["ts"]), 2'000'000);
  EXPECT_EQ(Nanoseconds(spans[1]["dur"]), 5);
  EXPECT_FALSE(spans[1].contains("args"));
  EXPECT_EQ(RowNames(json).at(RowOf(spans[0])), "main");
}

TEST(TimelineTest, WithoutATimelineASpanDoesNothing) {
  TimelineSpan span(nullptr, "nothing", {"layer", 1});
  span.End();
  span.End();
}

TEST(TimelineTest, AnEmptyTimelineIsAFileToo) {
  const Json json = Written(*Make());
  EXPECT_THAT(Events(json, "X"), ElementsAre());
  EXPECT_EQ(json["otherData"]["recorded_events"], 0);
}

TEST(TimelineTest, SpansOfAScopeNestAndComeOutermostFirst) {
  const auto timeline = Make();
  {
    const TimelineSpan token(timeline.get(), "token");
    for (int layer = 0; layer < 2; ++layer) {
      const TimelineSpan attention(timeline.get(), "attention", {"layer", layer});
      TimelineSpan lookup(timeline.get(), "lookup");
      lookup.End();
      const TimelineSpan attend(timeline.get(), "attend");
    }
  }
  const Json json = Written(*timeline);
  EXPECT_THAT(Names(Events(json, "X")), ElementsAre("token", "attention", "lookup", "attend",
                                                    "attention", "lookup", "attend"));
  ExpectNested(json);
}

// As a clock may be too coarse to tell them apart.
TEST(TimelineTest, SpansOfOneTimeNestAsTheyWereRecorded) {
  const auto timeline = Make();
  const int64_t now = Timeline::Now();
  timeline->Record("inner", now, now + 10);
  timeline->Record("middle", now, now + 10);
  timeline->Record("outer", now, now + 20);
  EXPECT_THAT(Names(Events(Written(*timeline), "X")), ElementsAre("outer", "middle", "inner"));
}

TEST(TimelineTest, WhatFindsNoRoomIsCounted) {
  const auto timeline = Make(10);
  for (int i = 0; i < 25; ++i) const TimelineSpan span(timeline.get(), "span", {"number", i});
  EXPECT_EQ(timeline->recorded(), 10u);
  EXPECT_EQ(timeline->dropped(), 15u);
  const Json json = Written(*timeline);
  EXPECT_EQ(json["otherData"]["recorded_events"], 10);
  EXPECT_EQ(json["otherData"]["dropped_events"], 15);
  const std::vector<Json> spans = Events(json, "X");
  ASSERT_EQ(spans.size(), 10u);
  EXPECT_EQ(spans.back()["args"]["number"], 9) << "the first ones stay";
  EXPECT_THAT(json.dump(), HasSubstr("15 events were dropped")) << "where a viewer shows it";
}

TEST(TimelineTest, ThreadsHaveRowsOfTheirOwn) {
  constexpr int kThreads = 4;
  constexpr int kSpans = 2000;
  const auto timeline = Make(kThreads * kSpans * 2);
  std::vector<std::thread> threads;
  for (int number = 0; number < kThreads; ++number) {
    threads.emplace_back([&, number] {
      if (number > 0) timeline->NameThread(absl::StrCat("worker ", number));
      for (int i = 0; i < kSpans; ++i) {
        const TimelineSpan outer(timeline.get(), "outer", {"thread", number}, {"span", i});
        const TimelineSpan inner(timeline.get(), "inner", {"thread", number}, {"span", i});
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const Json json = Written(*timeline);
  ExpectNested(json);
  std::map<Row, std::string> names = RowNames(json);
  std::map<Row, std::vector<int>> spans;  // the numbers of inner ones
  for (const Json& event : Events(json, "X")) {
    const int thread = event["args"]["thread"];
    const std::string name = names[RowOf(event)];
    if (thread > 0) {
      EXPECT_EQ(name, absl::StrCat("worker ", thread));
    } else {
      EXPECT_THAT(name, HasSubstr("thread "));
    }
    if (event["name"] == "inner") spans[RowOf(event)].push_back(event["args"]["span"]);
  }
  EXPECT_EQ(spans.size(), size_t{kThreads});
  for (const auto& [row, numbers] : spans) {
    EXPECT_EQ(numbers.size(), size_t{kSpans});
    EXPECT_TRUE(std::is_sorted(numbers.begin(), numbers.end()));
  }
}

TEST(TimelineTest, AThreadThatEndedDoesNotShareItsRow) {
  const auto timeline = Make();
  // The second may well get the id of the first.
  for (const char* const name : {"first", "second"}) {
    std::thread([&] {
      timeline->NameThread(name);
      const TimelineSpan span(timeline.get(), name);
    }).join();
  }
  const Json json = Written(*timeline);
  std::map<Row, std::string> names = RowNames(json);
  const std::vector<Json> spans = Events(json, "X");
  ASSERT_EQ(spans.size(), 2u);
  for (const Json& span : spans) EXPECT_EQ(span["name"], names[RowOf(span)]);
}

TEST(TimelineTest, AThreadMayRecordToSeveralTimelinesInTurn) {
  const auto one = Make();
  const auto other = Make();
  one->NameThread("of one");
  for (int i = 0; i < 3; ++i) {
    one->Record("a", i, i + 1);
    other->Record("b", i, i + 1);
  }
  const Json json = Written(*one);
  EXPECT_THAT(Names(Events(json, "X")), ElementsAre("a", "a", "a"));
  EXPECT_EQ(RowNames(json).size(), 1u);
  EXPECT_THAT(Names(Events(Written(*other), "X")), ElementsAre("b", "b", "b"));
}

TEST(TimelineTest, TransfersThatOverlapGetAsManyRowsAsThereAreAtOnce) {
  const auto timeline = Make();
  const TimelineTrack reads = timeline->Track("NVMe demand");
  EXPECT_EQ(timeline->Track("NVMe demand"), reads);
  EXPECT_NE(timeline->Track("NVMe offload"), reads);
  // Recorded as they end.
  timeline->Record(reads, "read", 10, 20, {"number", 0});
  timeline->Record(reads, "read", 0, 30, {"number", 1});
  timeline->Record(reads, "read", 20, 40, {"number", 2});
  timeline->Record(reads, "read", 25, 45, {"number", 3});
  timeline->Record(reads, "read", 50, 60, {"number", 4});
  const Json json = Written(*timeline);
  std::map<Row, std::string> names = RowNames(json);
  std::vector<std::string> shown;
  for (const auto& [row, name] : names) shown.push_back(name);
  EXPECT_THAT(shown, UnorderedElementsAre("NVMe demand", "NVMe demand 2", "NVMe demand 3"));
  ExpectNested(json);
  std::map<int, std::string> rows;
  for (const Json& event : Events(json, "X")) {
    rows[event["args"]["number"].get<int>()] = names[RowOf(event)];
  }
  EXPECT_EQ(rows[1], "NVMe demand");
  EXPECT_EQ(rows[0], "NVMe demand 2");
  EXPECT_EQ(rows[2], "NVMe demand 2") << "it begins when the first ends";
  EXPECT_EQ(rows[3], "NVMe demand 3");
  EXPECT_EQ(rows[4], "NVMe demand");
}

TEST(TimelineTest, CountersKeepTheirValuesInOrder) {
  const auto timeline = Make();
  for (const int64_t value : {5, 7, 0}) timeline->Count("slots used", value);
  const std::vector<Json> counts = Events(Written(*timeline), "C");
  ASSERT_EQ(counts.size(), 3u);
  EXPECT_THAT(Names(counts), ElementsAre("slots used", "slots used", "slots used"));
  EXPECT_EQ(counts[0]["args"]["value"], 5);
  EXPECT_EQ(counts[1]["args"]["value"], 7);
  EXPECT_EQ(counts[2]["args"]["value"], 0);
}

TEST(TimelineTest, NamesMayHoldAnything) {
  const auto timeline = Make();
  const std::string name = "a \"quote\", a \\, a\nline and \xff";
  timeline->NameThread(name);
  timeline->Record("x\ty", 0, 1, {"a\"b", 1});
  timeline->Record(timeline->Track(name), "z", 0, 1);
  const Json json = Written(*timeline, name);
  const std::vector<Json> spans = Events(json, "X");
  ASSERT_EQ(spans.size(), 2u);
  EXPECT_EQ(spans[0]["name"], "x\ty");
  EXPECT_EQ(spans[0]["args"]["a\"b"], 1);
  for (const auto& [row, shown] : RowNames(json)) {
    EXPECT_EQ(shown, "a \"quote\", a \\, a\nline and \uFFFD");
  }
}

TEST(TimelineTest, TimesBeforeTheTimelineAreNegative) {
  const auto timeline = Make();
  const int64_t now = Timeline::Now();
  timeline->Record("early", now - 2'000'000'001, now);
  timeline->Record("late", now, now - 5);
  const std::vector<Json> spans = Events(Written(*timeline), "X");
  ASSERT_EQ(spans.size(), 2u);
  EXPECT_LT(spans[0]["ts"].get<double>(), -1e6);
  EXPECT_EQ(Nanoseconds(spans[0]["dur"]), 2'000'000'001);
  EXPECT_EQ(spans[1]["dur"], 0) << "a duration is not negative";
}

TEST(TimelineTest, MayBeWrittenWhileOthersRecord) {
  const auto timeline = Make(20'000);
  std::atomic<bool> stop = false;
  absl::Barrier* const started = new absl::Barrier(2);
  std::thread recorder([&] {
    if (started->Block()) delete started;
    while (!stop) const TimelineSpan span(timeline.get(), "span", {"layer", 1});
  });
  if (started->Block()) delete started;
  size_t before = 0;
  for (int i = 0; i < 3; ++i) {
    const Json json = Written(*timeline);
    const std::vector<Json> spans = Events(json, "X");
    EXPECT_EQ(json["otherData"]["recorded_events"], spans.size());
    EXPECT_GE(spans.size(), before);
    before = spans.size();
    ExpectNested(json);
  }
  stop = true;
  recorder.join();
}

TEST(TimelineTest, ALargeFileComesInPieces) {
  constexpr int kSpans = 20'000;
  const auto timeline = Make(kSpans);
  for (int i = 0; i < kSpans; ++i) timeline->Record("span", i, i + 1, {"number", i});
  size_t pieces = 0;
  std::string text;
  ASSERT_TRUE(timeline
                  ->Write("test",
                          [&](absl::string_view piece) {
                            ++pieces;
                            EXPECT_LT(piece.size(), size_t{1} << 20);
                            absl::StrAppend(&text, piece);
                            return absl::OkStatus();
                          })
                  .ok());
  EXPECT_GT(pieces, 2u);
  EXPECT_EQ(Events(Json::parse(text, nullptr, false), "X").size(), size_t{kSpans});
}

TEST(TimelineTest, ErrorsOfTheSinkComeBack) {
  const auto timeline = Make();
  timeline->Record("span", 0, 1);
  const absl::Status status = timeline->Write(
      "test", [](absl::string_view) { return absl::DataLossError("no room on the disk"); });
  EXPECT_EQ(status, absl::DataLossError("no room on the disk"));
}

TEST(TimelineTest, AFileIsWrittenAndABadPathNamed) {
  const auto timeline = Make();
  timeline->Record("span", 0, 1);
  const TempDir dir;
  ASSERT_TRUE(timeline->WriteFile("test", dir.Join("trace.json")).ok());
  std::ifstream file(dir.Join("trace.json"));
  EXPECT_EQ(Events(Json::parse(file, nullptr, false), "X").size(), 1u);

  const absl::Status absent = timeline->WriteFile("test", dir.Join("absent/trace.json"));
  EXPECT_TRUE(absl::IsNotFound(absent)) << absent;
  EXPECT_THAT(std::string(absent.message()), HasSubstr(dir.Join("absent/trace.json")));
  const absl::Status full = timeline->WriteFile("test", "/dev/full");
  EXPECT_TRUE(absl::IsResourceExhausted(full)) << full;
  EXPECT_THAT(std::string(full.message()), AllOf(HasSubstr("/dev/full"), HasSubstr("write")));
}

TEST(TimelineTest, SizesThatCannotBeAreRefused) {
  EXPECT_TRUE(absl::IsInvalidArgument(Timeline::Create(0).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(Timeline::Create(size_t{1} << 40).status()));
}

}  // namespace
}  // namespace terrace
