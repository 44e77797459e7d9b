#include "tools/trace_line.h"

#include <array>
#include <cstddef>
#include <limits>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "nlohmann/json.hpp"

namespace terrace {
namespace {

// Deep enough for any annotation, shallow enough to say that a line is no request.
constexpr int kMaxDepth = 64;

// A short printable form of text from a file, which may be long and may be binary.
std::string Excerpt(absl::string_view text) {
  constexpr size_t kMaxBytes = 40;
  if (text.size() <= kMaxBytes) return absl::CHexEscape(text);
  return absl::StrCat(absl::CHexEscape(text.substr(0, kMaxBytes)), "...");
}

enum class Field : uint8_t { kTimestamp, kInputLength, kOutputLength, kHashIds, kOther };
constexpr std::array<absl::string_view, 4> kFieldNames = {"timestamp", "input_length",
                                                          "output_length", "hash_ids"};

Field FieldNamed(absl::string_view name) {
  for (size_t i = 0; i < kFieldNames.size(); ++i) {
    if (name == kFieldNames[i]) return static_cast<Field>(i);
  }
  return Field::kOther;
}

uint64_t MaxOf(Field field) {
  switch (field) {
    case Field::kTimestamp:
      return std::numeric_limits<int64_t>::max();
    case Field::kInputLength:
    case Field::kOutputLength:
      return kMaxTraceTokens;
    case Field::kHashIds:
    case Field::kOther:
      break;
  }
  return kMaxTraceHashId;
}

// Takes the events of nlohmann's parser straight into a TraceLine: a prompt of millions of ids
// never becomes a document tree. Every event returns whether to go on; `status` says why not.
class RequestHandler : public nlohmann::json_sax<nlohmann::json> {
 public:
  RequestHandler(size_t line_bytes, TraceLine& request)
      : line_bytes_(line_bytes), request_(request) {}

  // OK once parsing succeeded and every field was there.
  absl::Status Finish() const {
    if (!status_.ok()) return status_;
    for (size_t i = 0; i < kFieldNames.size(); ++i) {
      if (!seen_[i]) {
        return absl::InvalidArgumentError(
            absl::StrCat("field \"", kFieldNames[i], "\" is missing"));
      }
    }
    return absl::OkStatus();
  }

  bool key(string_t& name) override {
    if (depth_ > 1) return true;
    any_field_ = true;
    field_ = FieldNamed(name);
    if (field_ == Field::kOther) {
      other_name_ = Excerpt(name);
      return true;
    }
    bool& seen = seen_[static_cast<size_t>(field_)];
    if (seen) return Fail("appears twice");
    seen = true;
    return true;
  }

  bool number_unsigned(number_unsigned_t value) override {
    if (field_ == Field::kOther) return true;
    // A bare number where the array of ids belongs goes the way of any other wrong type.
    if (ExpectsArray() || value > MaxOf(field_)) return Wrong(absl::StrCat(value));
    Store(value);
    return true;
  }
  bool number_integer(number_integer_t value) override {
    // The parser calls this for a leading minus only, so that -0 is the one value to accept.
    return value == 0 ? number_unsigned(0) : Wrong(absl::StrCat(value));
  }
  bool number_float(number_float_t, const string_t& text) override { return Wrong(Excerpt(text)); }
  bool null() override { return Wrong("null"); }
  bool boolean(bool value) override { return Wrong(value ? "true" : "false"); }
  bool string(string_t&) override { return Wrong("a string"); }
  bool binary(binary_t&) override { return Wrong("binary data"); }

  bool start_object(size_t) override {
    if (depth_ > 0 && field_ != Field::kOther) return Wrong("an object");
    return Descend();
  }
  bool start_array(size_t) override {
    if (field_ != Field::kOther && !ExpectsArray()) return Wrong("an array");
    return Descend();
  }
  bool end_object() override {
    --depth_;
    return true;
  }
  bool end_array() override {
    --depth_;
    return true;
  }

  bool parse_error(size_t position, const std::string& last_token,
                   const nlohmann::json::exception&) override {
    const std::string where =
        any_field_ ? absl::StrCat("after field \"", FieldName(), "\" began") : "at the first field";
    // The parser counts the end of its input as one more byte.
    if (position > line_bytes_) {
      status_ = absl::InvalidArgumentError(
          absl::StrCat("the line seems truncated: it ends ", where, ", at byte ", line_bytes_));
    } else {
      status_ = absl::InvalidArgumentError(absl::StrCat(
          "not valid JSON ", where, ", at byte ", position, ": \"", Excerpt(last_token), "\""));
    }
    return false;
  }

 private:
  bool ExpectsArray() const { return field_ == Field::kHashIds && depth_ == 1; }

  absl::string_view FieldName() const {
    if (field_ == Field::kOther) return other_name_;
    return kFieldNames[static_cast<size_t>(field_)];
  }

  void Store(uint64_t value) {
    switch (field_) {
      case Field::kTimestamp:
        request_.timestamp_ms = static_cast<int64_t>(value);
        break;
      case Field::kInputLength:
        request_.input_length = static_cast<uint32_t>(value);
        break;
      case Field::kOutputLength:
        request_.output_length = static_cast<uint32_t>(value);
        break;
      case Field::kHashIds:
        request_.hash_ids.push_back(value);
        break;
      case Field::kOther:
        break;
    }
  }

  bool Descend() {
    if (++depth_ <= kMaxDepth) return true;
    return Fail(absl::StrCat("is nested deeper than ", kMaxDepth, " levels"));
  }

  // A value that is not what the current field takes; anything goes in an unknown field.
  bool Wrong(absl::string_view found) {
    if (field_ == Field::kOther) return true;
    const std::string integer = absl::StrCat("an integer from 0 to ", MaxOf(field_));
    if (field_ != Field::kHashIds) return Fail(absl::StrCat("is ", found, ", expected ", integer));
    if (depth_ == 1) return Fail(absl::StrCat("is ", found, ", expected an array of integers"));
    return Fail(
        absl::StrCat("element ", request_.hash_ids.size(), " is ", found, ", expected ", integer),
        ": ");
  }

  bool Fail(absl::string_view what, absl::string_view separator = " ") {
    status_ =
        absl::InvalidArgumentError(absl::StrCat("field \"", FieldName(), "\"", separator, what));
    return false;
  }

  const size_t line_bytes_;
  TraceLine& request_;
  absl::Status status_;
  int depth_ = 0;
  bool any_field_ = false;
  Field field_ = Field::kOther;  // whose value comes or came last
  std::string other_name_;
  std::array<bool, kFieldNames.size()> seen_ = {};
};

}  // namespace

absl::Status ParseTraceLine(absl::string_view line, TraceLine& request) {
  request.timestamp_ms = 0;
  request.input_length = 0;
  request.output_length = 0;
  request.hash_ids.clear();
  // The parser would take a NUL for the end of its input, and a byte order mark for nothing.
  if (const size_t nul = line.find('\0'); nul != absl::string_view::npos) {
    return absl::InvalidArgumentError(absl::StrCat("byte ", nul + 1, " of the line is NUL"));
  }
  const absl::string_view text = absl::StripLeadingAsciiWhitespace(line);
  if (!absl::StartsWith(text, "{")) {
    return absl::InvalidArgumentError(
        absl::StrCat("expected a JSON object, found \"", Excerpt(text), "\""));
  }
  RequestHandler handler(line.size(), request);
  nlohmann::json::sax_parse(line.begin(), line.end(), &handler);
  return handler.Finish();
}

void AppendTraceLine(const TraceLine& request, std::string& text) {
  absl::StrAppend(&text, "{\"timestamp\": ", request.timestamp_ms,
                  ", \"input_length\": ", request.input_length,
                  ", \"output_length\": ", request.output_length, ", \"hash_ids\": [",
                  absl::StrJoin(request.hash_ids, ", "), "]}\n");
}

}  // namespace terrace
