#ifndef TERRACE_TESTS_SUPPORT_TRACE_EVENTS_H_
#define TERRACE_TESTS_SUPPORT_TRACE_EVENTS_H_

#include <cmath>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "io/timeline.h"
#include "nlohmann/json.hpp"

// Reads Chrome traces, as viewers would.
namespace terrace {

using Json = nlohmann::json;

inline Json Written(const Timeline& timeline, const std::string& program = "test") {
  std::string text;
  const absl::Status status = timeline.Write(program, [&](absl::string_view piece) {
    absl::StrAppend(&text, piece);
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
  Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  EXPECT_FALSE(json.is_discarded()) << text;
  return json;
}

// The events of a phase ("X" for spans), in the order of the file.
inline std::vector<Json> Events(const Json& json, const std::string& phase) {
  std::vector<Json> events;
  for (const Json& event : json["traceEvents"]) {
    if (event["ph"] == phase) events.push_back(event);
  }
  return events;
}

using Row = std::pair<int, int>;  // pid and tid
inline Row RowOf(const Json& event) { return {event["pid"], event["tid"]}; }

inline std::map<Row, std::string> RowNames(const Json& json) {
  std::map<Row, std::string> names;
  for (const Json& event : Events(json, "M")) {
    if (event["name"] == "thread_name") names[RowOf(event)] = event["args"]["name"];
  }
  return names;
}

inline std::vector<std::string> Names(const std::vector<Json>& events) {
  std::vector<std::string> names;
  for (const Json& event : events) names.push_back(event["name"]);
  return names;
}

// The file has microseconds with three decimals.
inline int64_t Nanoseconds(const Json& microseconds) {
  return std::llround(microseconds.get<double>() * 1000);
}

// Whether the spans of every row nest, given that each comes before those within it.
inline void ExpectNested(const Json& json) {
  std::map<Row, std::vector<std::pair<int64_t, int64_t>>> open;  // begin and end
  for (const Json& event : Events(json, "X")) {
    auto& stack = open[RowOf(event)];
    const int64_t begin = Nanoseconds(event["ts"]);
    const int64_t end = begin + Nanoseconds(event["dur"]);
    while (!stack.empty() && stack.back().second <= begin) stack.pop_back();
    if (!stack.empty()) {
      EXPECT_LE(stack.back().first, begin) << event;
      EXPECT_GE(stack.back().second, end) << event;
    }
    stack.push_back({begin, end});
  }
}

// The names of rows that have spans, each with the names of its spans.
inline std::map<std::string, std::vector<std::string>> SpansByRow(const Json& json) {
  const std::map<Row, std::string> names = RowNames(json);
  std::map<std::string, std::vector<std::string>> spans;
  for (const Json& event : Events(json, "X")) {
    spans[names.at(RowOf(event))].push_back(event["name"]);
  }
  return spans;
}

}  // namespace terrace

#endif  // TERRACE_TESTS_SUPPORT_TRACE_EVENTS_H_
