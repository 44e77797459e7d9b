#include "tools/table.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"

namespace terrace {
namespace {

constexpr absl::string_view kColumnGap = "  ";

// Columns that UTF-8 text takes, if each character takes one.
size_t DisplayWidth(absl::string_view text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xc0) != 0x80;  // not a continuation byte
  }));
}

std::string Pad(absl::string_view cell, size_t width, Align align) {
  const std::string blanks(width - DisplayWidth(cell), ' ');
  return align == Align::kLeft ? absl::StrCat(cell, blanks) : absl::StrCat(blanks, cell);
}

}  // namespace

Table::Table(std::vector<TableColumn> columns) : columns_(std::move(columns)) {}

void Table::AddRow(std::vector<std::string> cells) {
  cells.resize(columns_.size());
  rows_.push_back(std::move(cells));
}

std::string Table::ToString() const {
  std::vector<std::string> headers;
  bool any_header = false;
  for (const TableColumn& column : columns_) {
    headers.push_back(column.header);
    any_header = any_header || !column.header.empty();
  }
  std::vector<size_t> widths(columns_.size());
  const auto widen = [&widths](const std::vector<std::string>& cells) {
    for (size_t i = 0; i < cells.size(); ++i)
      widths[i] = std::max(widths[i], DisplayWidth(cells[i]));
  };
  widen(headers);
  for (const std::vector<std::string>& row : rows_) widen(row);

  std::string text;
  const auto append = [&](const std::vector<std::string>& cells) {
    std::string line;
    for (size_t i = 0; i < cells.size(); ++i) {
      absl::StrAppend(&line, i > 0 ? kColumnGap : "", Pad(cells[i], widths[i], columns_[i].align));
    }
    absl::StrAppend(&text, absl::StripTrailingAsciiWhitespace(line), "\n");
  };
  if (any_header) append(headers);
  for (const std::vector<std::string>& row : rows_) append(row);
  return text;
}

std::string FormatCount(uint64_t count) {
  std::string text = absl::StrCat(count);
  for (size_t end = text.size(); end > 3; end -= 3) text.insert(end - 3, 1, ',');
  return text;
}

std::string FormatMicroseconds(uint64_t value_us) { return FormatCount(value_us) + " us"; }

std::string FormatSeconds(double seconds) {
  if (!std::isfinite(seconds)) return "-";
  // One unit throughout, so short times need more decimals to keep three digits.
  const double size = std::fabs(seconds);
  const int decimals = size == 0 || size >= 1 ? 3 : size >= 1e-3 ? 6 : 9;
  return absl::StrFormat("%.*f s", decimals, seconds);
}

std::string FormatRate(double bytes_per_second) {
  constexpr std::array<absl::string_view, 5> kUnits = {"B/s", "kB/s", "MB/s", "GB/s", "TB/s"};
  if (!std::isfinite(bytes_per_second)) return "-";
  double value = bytes_per_second;
  size_t unit = 0;
  // 999.5 and more would round to four digits.
  while (unit + 1 < kUnits.size() && std::fabs(value) >= 999.5) {
    value /= 1000;
    ++unit;
  }
  const double size = std::fabs(value);
  const int decimals = unit == 0 || size >= 99.95 ? 0 : size >= 9.995 ? 1 : 2;
  return absl::StrFormat("%.*f %s", decimals, value, kUnits[unit]);
}

std::string FormatPercent(double fraction) {
  if (!std::isfinite(fraction)) return "-";
  return absl::StrFormat("%.2f %%", fraction * 100);
}

}  // namespace terrace
