#include "tools/byte_size.h"

#include <array>
#include <cstddef>
#include <limits>
#include <numeric>

#include "CLI/CLI.hpp"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"

namespace terrace {
namespace {

// Powers of 1000 or 1024, from none up.
constexpr absl::string_view kPrefixes = "kmgt";
constexpr std::array<absl::string_view, 5> kUnits = {"B", "KiB", "MiB", "GiB", "TiB"};

// More digits than any size has below the point, and 10^18 fits in 64 bits.
constexpr size_t kMaxFractionDigits = 18;

absl::Status Error(absl::string_view text, absl::string_view what) {
  return absl::InvalidArgumentError(
      absl::StrCat("\"", absl::CHexEscape(text.substr(0, 40)), "\" ", what));
}

absl::Status NotASize(absl::string_view text) {
  return Error(text, "is not a byte size; expected one like 4096, 128k, 64MiB or 1.5GiB");
}

// Bytes in one of a unit, or 0 when there is no such unit.
uint64_t UnitBytes(absl::string_view unit) {
  const std::string lower = absl::AsciiStrToLower(unit);
  if (lower.empty() || lower == "b") return 1;
  const size_t prefix = kPrefixes.find(lower[0]);
  if (prefix == absl::string_view::npos) return 0;
  const absl::string_view suffix = absl::string_view(lower).substr(1);
  const bool binary = suffix.empty() || suffix == "i" || suffix == "ib";
  if (!binary && suffix != "b") return 0;
  uint64_t bytes = 1;
  for (size_t i = 0; i <= prefix; ++i) bytes *= binary ? 1024 : 1000;
  return bytes;
}

absl::string_view ConsumeDigits(absl::string_view& text) {
  size_t count = 0;
  while (count < text.size() && absl::ascii_isdigit(text[count])) ++count;
  const absl::string_view digits = text.substr(0, count);
  text.remove_prefix(count);
  return digits;
}

// `digits` after the decimal point, of a unit of `unit_bytes`.
absl::StatusOr<uint64_t> FractionBytes(absl::string_view text, absl::string_view digits,
                                       uint64_t unit_bytes) {
  while (absl::ConsumeSuffix(&digits, "0")) {
  }
  if (digits.empty()) return 0;
  uint64_t numerator = 0;
  if (digits.size() > kMaxFractionDigits || !absl::SimpleAtoi(digits, &numerator)) {
    return Error(text, "is not a whole number of bytes");
  }
  uint64_t denominator = 1;
  for (size_t i = 0; i < digits.size(); ++i) denominator *= 10;
  // Reduced by the common divisor, nothing below overflows.
  const uint64_t common = std::gcd(unit_bytes, denominator);
  if (numerator % (denominator / common) != 0) return Error(text, "is not a whole number of bytes");
  return numerator / (denominator / common) * (unit_bytes / common);
}

}  // namespace

absl::StatusOr<uint64_t> ParseByteSize(absl::string_view text) {
  constexpr uint64_t kMax = std::numeric_limits<uint64_t>::max();
  absl::string_view rest = absl::StripAsciiWhitespace(text);
  const absl::string_view whole_digits = ConsumeDigits(rest);
  if (whole_digits.empty()) {
    return rest.empty() || rest[0] != '-' ? NotASize(text)
                                          : Error(text, "is negative, expected a byte size");
  }
  absl::string_view fraction_digits;
  if (absl::ConsumePrefix(&rest, ".")) {
    fraction_digits = ConsumeDigits(rest);
    if (fraction_digits.empty()) return NotASize(text);
  }
  const uint64_t unit_bytes = UnitBytes(absl::StripLeadingAsciiWhitespace(rest));
  if (unit_bytes == 0) return NotASize(text);
  absl::StatusOr<uint64_t> fraction = FractionBytes(text, fraction_digits, unit_bytes);
  if (!fraction.ok()) return fraction.status();
  uint64_t whole = 0;
  // The fraction is less than one unit.
  if (!absl::SimpleAtoi(whole_digits, &whole) || whole > (kMax - *fraction) / unit_bytes) {
    return Error(text, absl::StrCat("is too large; the limit is ", kMax, " bytes"));
  }
  return whole * unit_bytes + *fraction;
}

std::string FormatByteSize(uint64_t bytes) {
  size_t unit = 0;
  uint64_t unit_bytes = 1;
  // A size within half a hundredth of the next unit would print as 1024.00 of this one.
  while (unit + 1 < kUnits.size() && static_cast<double>(bytes) / unit_bytes >= 1023.995) {
    ++unit;
    unit_bytes *= 1024;
  }
  if (bytes % unit_bytes == 0) return absl::StrCat(bytes / unit_bytes, " ", kUnits[unit]);
  return absl::StrFormat("%.2f %s", static_cast<double>(bytes) / unit_bytes, kUnits[unit]);
}

namespace {

// CLI11 puts the option's name before the text that a validator returns.
std::string ToBytes(std::string& text) {
  const absl::StatusOr<uint64_t> bytes = ParseByteSize(text);
  if (!bytes.ok()) return std::string(bytes.status().message());
  text = absl::StrCat(*bytes);
  return std::string();
}

}  // namespace

CLI::Option* AddByteSizeOption(CLI::App& app, const std::string& name, uint64_t& target,
                               const std::string& description) {
  return app.add_option(name, target, description)
      ->transform(CLI::Validator(ToBytes, ""))
      ->type_name("SIZE")
      ->default_str(FormatByteSize(target));
}

CLI::Option* AddByteSizeOption(CLI::App& app, const std::string& name,
                               std::optional<uint64_t>& target, const std::string& description) {
  return app.add_option(name, target, description)
      ->transform(CLI::Validator(ToBytes, ""))
      ->type_name("SIZE");
}

}  // namespace terrace
