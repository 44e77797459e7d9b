#ifndef TERRACE_TOOLS_TABLE_H_
#define TERRACE_TOOLS_TABLE_H_

#include <cstdint>
#include <string>
#include <vector>

namespace terrace {

enum class Align : uint8_t { kLeft, kRight };

struct TableColumn {
  std::string header;
  Align align = Align::kRight;
};

// Rows of text in aligned columns, for people. Columns are two blanks apart, and lines have no
// trailing blanks. Thread-compatible.
class Table {
 public:
  explicit Table(std::vector<TableColumn> columns);

  // Cells that a row lacks are empty. REQUIRES: at most one cell a column.
  void AddRow(std::vector<std::string> cells);

  // All lines, each with its end-of-line. The header line is left out when every header is empty.
  std::string ToString() const;

 private:
  std::vector<TableColumn> columns_;
  std::vector<std::vector<std::string>> rows_;
};

std::string FormatCount(uint64_t count);            // "288,500"
std::string FormatMicroseconds(uint64_t value_us);  // "1,250 us"

// A value that is not finite becomes "-".
std::string FormatSeconds(double seconds);        // "12.345 s", "0.012346 s"
std::string FormatRate(double bytes_per_second);  // decimal units: "1.23 GB/s", "456 MB/s"
std::string FormatPercent(double fraction);       // "36.64 %" for 0.3664

}  // namespace terrace

#endif  // TERRACE_TOOLS_TABLE_H_
