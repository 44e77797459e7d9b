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
    high_x_ = std::max(low_x_ + 1, std::log2(static_cast<double>(*depths.rbegin())));
    std::string text = Frame();
    for (const size_t depth : depths) text += XTick(depth);
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
    if (logarithmic_) value = std::log10(std::max(value, 1e-9));
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

  std::string XTick(size_t depth) const {
    return absl::StrFormat(
        "<line class=\"grid\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n"
        "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%d</text>\n",
        X(depth), kTop, X(depth), kTop + kPanelHeight, X(depth), kTop + kPanelHeight + 18, depth);
  }

  std::string YTick(double value) const {
    return absl::StrFormat(
        "<line class=\"grid\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n"
        "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">%g</text>\n",
        left_, Y(value), left_ + kPanelWidth, Y(value), left_ - 6, Y(value) + 4, value);
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
    for (double value = 0; value <= high_y_ + step / 2; value += step) text += YTick(value);
    return text;
  }

  std::string LogarithmicTicks(double smallest, double largest) {
    low_y_ = std::floor(std::log10(std::max(smallest, 1e-3)));
    high_y_ = std::max(low_y_ + 1, std::ceil(std::log10(std::max(largest, 1e-3))));
    std::string text;
    for (double power = low_y_; power <= high_y_; ++power) text += YTick(std::pow(10, power));
    return text;
  }

  std::string Line(const Series& series) const {
    std::string points;
    std::string dots;
    for (const DeviceProfile::Row* row : series.rows) {
      const double x = X(row->depth);
      const double y = Y(value_(*row));
      absl::StrAppendFormat(&points, "%.1f,%.1f ", x, y);
      absl::StrAppendFormat(&dots, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"2.5\" %s/>\n", x, y,
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

std::string Legend(const std::vector<Series>& all) {
  std::string text;
  for (size_t i = 0; i < all.size(); ++i) {
    const double x = 40 + kLegendColumn * static_cast<double>(i % kLegendColumns);
    const double y = kLegendTop + kLegendLine * static_cast<double>(i / kLegendColumns);
    absl::StrAppendFormat(&text,
                          "<polyline points=\"%.0f,%.0f %.0f,%.0f\" %s/>\n"
                          "<text x=\"%.0f\" y=\"%.0f\">%s</text>\n",
                          x, y, x + 40, y, all[i].style, x + 48, y + 4,
                          Escape(absl::StrCat(all[i].op, " ", FormatByteSize(all[i].block_bytes))));
  }
  return text;
}

constexpr char kStyle[] = R"(<style>
svg { background: #ffffff; }
text { font: 13px sans-serif; fill: #222222; }
.title { font-weight: bold; font-size: 15px; }
.frame { fill: none; stroke: #888888; }
.grid { stroke: #888888; stroke-opacity: 0.25; }
polyline { fill: none; stroke-width: 2; }
circle { stroke-dasharray: none; stroke-width: 2; }
@media (prefers-color-scheme: dark) {
  svg { background: #16181c; }
  text { fill: #e6e6e6; }
}
</style>
)";

}  // namespace

std::string SsdPlot(const DeviceProfile& profile) {
  const std::vector<Series> all = MakeSeries(profile);
  const size_t legend_lines = (all.size() + kLegendColumns - 1) / kLegendColumns;
  const double height = kLegendTop + kLegendLine * static_cast<double>(legend_lines) + 10;
  Panel bandwidth(
      kLeft[0], "Bandwidth (GB/s)",
      [](const DeviceProfile::Row& row) { return row.bytes_per_second * 1e-9; },
      /*logarithmic=*/false);
  Panel latency(
      kLeft[1], "p99 latency (us)", [](const DeviceProfile::Row& row) { return row.p99_us; },
      /*logarithmic=*/true);
  return absl::StrCat(
      absl::StrFormat("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %.0f %.0f\" "
                      "width=\"%.0f\" height=\"%.0f\" role=\"img\">\n",
                      kWidth, height, kWidth, height),
      "<title>", Escape(profile.device), "</title>\n", kStyle,
      "<text x=\"40\" y=\"24\" class=\"title\">", Escape(profile.device), "</text>\n",
      bandwidth.Draw(all), latency.Draw(all), Legend(all), "</svg>\n");
}

}  // namespace terrace
