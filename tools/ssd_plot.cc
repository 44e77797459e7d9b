#include "tools/ssd_plot.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "tools/byte_size.h"

namespace terrace {
namespace {

// Pixels of the drawing.
constexpr double kPanelWidth = 400;
constexpr double kPanelHeight = 300;
constexpr double kTop = 60;
constexpr double kLeft[] = {80, 570};
constexpr double kLegendTop = kTop + kPanelHeight + 70;
constexpr double kLegendColumn = 240;
constexpr double kLegendLine = 20;
constexpr size_t kLegendColumns = 4;
constexpr double kDigitWidth = 8;
constexpr double kWidth = 1000;

// The palette of Okabe and Ito, which colour-blind readers can tell apart, in tones that show on
// white and on black.
constexpr const char* kColours[] = {"#0072b2", "#d55e00", "#009e73", "#cc79a7",
                                    "#e69f00", "#56b4e9", "#8a6fdf", "#808080"};
constexpr const char* kDashes[] = {"", "7 4", "2 3", "10 3 2 3", "1 5", "14 4"};

struct Series {
  std::string op;
  uint64_t block_bytes = 0;
  std::string style;                            // attributes of its line
  std::vector<const DeviceProfile::Row*> rows;  // by depth
};

std::string Escape(const std::string& text) {
  return absl::StrReplaceAll(text,
                             {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}, {"\"", "&quot;"}});
}

std::vector<Series> MakeSeries(const DeviceProfile& profile) {
  std::vector<std::string> ops;  // in the order measured
  std::set<uint64_t> sizes;
  for (const DeviceProfile::Row& row : profile.rows) {
    if (row.bytes_per_second <= 0) continue;
    if (std::find(ops.begin(), ops.end(), row.op) == ops.end()) ops.push_back(row.op);
    sizes.insert(row.block_bytes);
  }
  std::vector<Series> all;
  for (size_t op = 0; op < ops.size(); ++op) {
    size_t colour = 0;
    for (const uint64_t size : sizes) {
      Series series;
      series.op = ops[op];
      series.block_bytes = size;
      series.style = absl::StrCat("stroke=\"", kColours[colour++ % std::size(kColours)],
                                  "\" stroke-dasharray=\"", kDashes[op % std::size(kDashes)], "\"");
      for (const DeviceProfile::Row& row : profile.rows) {
        if (row.op != series.op || row.block_bytes != size || row.bytes_per_second <= 0) continue;
        series.rows.push_back(&row);
      }
      std::stable_sort(series.rows.begin(), series.rows.end(),
                       [](const auto* a, const auto* b) { return a->depth < b->depth; });
      if (!series.rows.empty()) all.push_back(std::move(series));
    }
  }
  return all;
}

// One diagram: maps values to pixels and draws axes and lines.
class Panel {
 public:
  using Value = double (*)(const DeviceProfile::Row&);

  Panel(double left, std::string title, Value value, bool logarithmic)
      : left_(left), title_(std::move(title)), value_(value), logarithmic_(logarithmic) {}

  std::string Draw(const std::vector<Series>& all) {
    std::set<size_t> depths;
    double largest = 0;
    double smallest = HUGE_VAL;
    for (const Series& series : all) {
      for (const DeviceProfile::Row* row : series.rows) {
        depths.insert(row->depth);
        largest = std::max(largest, value_(*row));
        smallest = std::min(smallest, value_(*row));
      }
    }
    if (depths.empty()) return "";
    low_x_ = std::log2(static_cast<double>(*depths.begin()));
    high_x_ = std::log2(static_cast<double>(*depths.rbegin()));
    if (depths.size() == 1) {  // goes into the middle
      low_x_ -= 0.5;
      high_x_ += 0.5;
    }
    std::string text = Frame() + XTicks(depths);
    text += logarithmic_ ? LogarithmicTicks(smallest, largest) : LinearTicks(largest);
    for (const Series& series : all) text += Line(series);
    return text;
  }

 private:
  double X(size_t depth) const {
    return left_ +
           kPanelWidth * (std::log2(static_cast<double>(depth)) - low_x_) / (high_x_ - low_x_);
  }
  double Y(double value) const {
    if (logarithmic_) value = std::log10(std::max(value, 1e-3));
    return kTop + kPanelHeight * (1 - (value - low_y_) / (high_y_ - low_y_));
  }

  std::string Frame() const {
    return absl::StrFormat(
        "<text class=\"title\" x=\"%.0f\" y=\"%.0f\">%s</text>\n"
        "<rect class=\"frame\" x=\"%.0f\" y=\"%.0f\" width=\"%.0f\" height=\"%.0f\"/>\n"
        "<text x=\"%.0f\" y=\"%.0f\" text-anchor=\"middle\">depth (requests in flight)</text>\n",
        left_, kTop - 12, title_, left_, kTop, kPanelWidth, kPanelHeight, left_ + kPanelWidth / 2,
        kTop + kPanelHeight + 40);
  }

  // A line for each depth, and its number where there is room for it.
  std::string XTicks(const std::set<size_t>& depths) const {
    std::string text;
    double free_from = 0;
    for (const size_t depth : depths) {
      const double x = X(depth);
      absl::StrAppendFormat(
          &text, "<line class=\"grid\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n", x,
          kTop, x, kTop + kPanelHeight);
      const std::string label = absl::StrCat(depth);
      const double half_width = kDigitWidth * static_cast<double>(label.size() + 1) / 2;
      if (x - half_width < free_from) continue;
      free_from = x + half_width;
      absl::StrAppendFormat(&text, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%s</text>\n",
                            x, kTop + kPanelHeight + 18, label);
    }
    return text;
  }

  std::string YTick(double value, const std::string& label) const {
    return absl::StrFormat(
        "<line class=\"grid\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n"
        "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">%s</text>\n",
        left_, Y(value), left_ + kPanelWidth, Y(value), left_ - 6, Y(value) + 4, label);
  }

  // Round steps, 1, 2 or 5 times a power of ten, from 0.
  std::string LinearTicks(double largest) {
    double step = std::pow(10, std::floor(std::log10(largest)));
    for (const double factor : {0.5, 0.4, 0.5}) {
      if (largest / step < 4) step *= factor;
    }
    low_y_ = 0;
    high_y_ = std::ceil(largest / step) * step;
    std::string text;
    for (double value = 0; value <= high_y_ + step / 2; value += step) {
      text += YTick(value, absl::StrFormat("%g", value));
    }
    return text;
  }

  // Microseconds from the last round value below all to the first one above.
  std::string LogarithmicTicks(double smallest, double largest) {
    std::vector<double> ticks;
    for (double power = 1e-3; power < 1e10; power *= 10) {
      for (const double factor : {1, 2, 5}) {
        const double value = power * factor;
        if (value <= smallest) ticks.clear();
        ticks.push_back(value);
        if (value > largest) break;
      }
      if (ticks.back() > largest) break;
    }
    low_y_ = std::log10(ticks.front());
    high_y_ = std::log10(ticks.back());
    std::string text;
    for (const double value : ticks) text += YTick(value, LatencyLabel(value));
    return text;
  }

  static std::string LatencyLabel(double value_us) {
    if (value_us < 999) return absl::StrFormat("%g us", value_us);
    if (value_us < 999e3) return absl::StrFormat("%g ms", value_us / 1e3);
    return absl::StrFormat("%g s", value_us / 1e6);
  }

  std::string Line(const Series& series) const {
    std::string points;
    std::string dots;
    for (const DeviceProfile::Row* row : series.rows) {
      const double x = X(row->depth);
      const double y = Y(value_(*row));
      absl::StrAppendFormat(&points, "%.1f,%.1f ", x, y);
      absl::StrAppendFormat(&dots, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"1.5\" %s/>\n", x, y,
                            series.style);
    }
    return absl::StrCat("<polyline points=\"", points, "\" ", series.style, "/>\n", dots);
  }

  const double left_;
  const std::string title_;
  const Value value_;
  const bool logarithmic_;
  double low_x_ = 0;
  double high_x_ = 1;
  double low_y_ = 0;
  double high_y_ = 1;
};

// A column for each block size if they fit.
size_t LegendColumns(const std::vector<Series>& all) {
  std::set<uint64_t> sizes;
  for (const Series& series : all) sizes.insert(series.block_bytes);
  return sizes.size() > 1 && sizes.size() < kLegendColumns ? sizes.size() : kLegendColumns;
}

std::string Legend(const std::vector<Series>& all, size_t columns) {
  std::string text;
  for (size_t i = 0; i < all.size(); ++i) {
    const double x = 40 + kLegendColumn * static_cast<double>(i % columns);
    const double y = kLegendTop + kLegendLine * static_cast<double>(i / columns);
    absl::StrAppendFormat(&text,
                          "<polyline points=\"%.0f,%.0f %.0f,%.0f\" %s/>\n"
                          "<text x=\"%.0f\" y=\"%.0f\">%s</text>\n",
                          x, y, x + 40, y, all[i].style, x + 48, y + 4,
                          Escape(absl::StrCat(all[i].op, " ", FormatByteSize(all[i].block_bytes))));
  }
  return text;
}

constexpr char kStyle[] = R"(<style>
.paper { fill: #ffffff; }
text { font: 13px sans-serif; fill: #222222; }
.title { font-weight: bold; font-size: 15px; }
.frame { fill: none; stroke: #888888; }
.grid { stroke: #888888; stroke-opacity: 0.25; }
polyline { fill: none; stroke-width: 2; }
circle { fill: none; stroke-dasharray: none; stroke-width: 3; }
@media (prefers-color-scheme: dark) {
  .paper { fill: #16181c; }
  text { fill: #e6e6e6; }
}
</style>
)";

}  // namespace

std::string SsdPlot(const DeviceProfile& profile) {
  const std::vector<Series> all = MakeSeries(profile);
  const size_t columns = LegendColumns(all);
  const size_t legend_lines = (all.size() + columns - 1) / columns;
  const double height = kLegendTop + kLegendLine * static_cast<double>(legend_lines) + 10;
  Panel bandwidth(
      kLeft[0], "Bandwidth (GB/s)",
      [](const DeviceProfile::Row& row) { return row.bytes_per_second * 1e-9; },
      /*logarithmic=*/false);
  Panel latency(
      kLeft[1], "p99 latency", [](const DeviceProfile::Row& row) { return row.p99_us; },
      /*logarithmic=*/true);
  return absl::StrCat(
      absl::StrFormat("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %.0f %.0f\" "
                      "width=\"%.0f\" height=\"%.0f\" role=\"img\">\n",
                      kWidth, height, kWidth, height),
      "<title>", Escape(profile.device), "</title>\n", kStyle,
      "<rect class=\"paper\" width=\"100%\" height=\"100%\"/>\n",
      "<text x=\"40\" y=\"24\" class=\"title\">terrace ssd on ", Escape(profile.device),
      "</text>\n", bandwidth.Draw(all), latency.Draw(all), Legend(all, columns), "</svg>\n");
}

}  // namespace terrace
