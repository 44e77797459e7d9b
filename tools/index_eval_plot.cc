#include "tools/index_eval_plot.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "tools/index_eval_report.h"
#include "tools/table.h"

namespace terrace {
namespace {

// Pixels of the drawing.
constexpr double kPanelWidth = 400;
constexpr double kPanelHeight = 300;
constexpr double kTop = 70;
constexpr double kLeft[] = {80, 570};
constexpr double kLegendTop = kTop + kPanelHeight + 70;
constexpr double kLegendColumn = 310;  // for a name with options
constexpr size_t kLegendColumns = 3;
constexpr double kWidth = 1000;
constexpr int kRecallTicks = 5;

// The palette of Okabe and Ito, which colour-blind readers can tell apart, in tones that show on
// white and on black.
constexpr const char* kColours[] = {"#0072b2", "#d55e00", "#009e73",
                                    "#cc79a7", "#e69f00", "#56b4e9"};
// For as many lines more of the same colours.
constexpr const char* kDashes[] = {"none", "8 4", "2 3"};

struct Point {
  double x = 0;
  Distribution recall;
  size_t effort = 0;
};
struct Series {
  std::string name;
  const char* colour;
  const char* dashes;
  std::vector<Point> points;
};

std::string Escape(const std::string& text) {
  return absl::StrReplaceAll(text,
                             {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}, {"\"", "&quot;"}});
}

std::vector<Series> MakeSeries(const SweepResult& result, double (*x)(const EffortResult&)) {
  std::vector<Series> all;
  for (size_t i = 0; i < result.indexes.size(); ++i) {
    Series series = {result.indexes[i].name,
                     kColours[i % std::size(kColours)],
                     kDashes[i / std::size(kColours) % std::size(kDashes)],
                     {}};
    for (const EffortResult& effort : result.indexes[i].efforts) {
      // A logarithm wants more than nothing.
      series.points.push_back({std::max(x(effort), 1e-9),
                               Distribution::Of(effort, &FoundFigures::recall), effort.effort});
    }
    all.push_back(std::move(series));
  }
  return all;
}

// One diagram: maps values to pixels and draws axes, lines and bars.
class Panel {
 public:
  Panel(double left, std::string title, std::string axis, std::string (*label)(double))
      : left_(left), title_(std::move(title)), axis_(std::move(axis)), label_(label) {}

  std::string Draw(const std::vector<Series>& all) {
    double smallest = HUGE_VAL, largest = 0;
    for (const Series& series : all) {
      for (const Point& point : series.points) {
        smallest = std::min(smallest, point.x);
        largest = std::max(largest, point.x);
      }
    }
    if (largest == 0) return "";
    low_ = std::floor(std::log10(smallest));
    high_ = std::max(std::ceil(std::log10(largest)), low_ + 1);
    std::string text = Frame();
    for (const Series& series : all) text += Line(series);
    return text;
  }

 private:
  double X(double value) const {
    return left_ + kPanelWidth * (std::log10(value) - low_) / (high_ - low_);
  }
  static double Y(double recall) { return kTop + kPanelHeight * (1 - recall); }

  std::string Frame() const {
    std::string text = absl::StrFormat(
        "<text class=\"title\" x=\"%.0f\" y=\"%.0f\">%s</text>\n"
        "<rect class=\"frame\" x=\"%.0f\" y=\"%.0f\" width=\"%.0f\" height=\"%.0f\"/>\n"
        "<text x=\"%.0f\" y=\"%.0f\" text-anchor=\"middle\">%s</text>\n",
        left_, kTop - 12, Escape(title_), left_, kTop, kPanelWidth, kPanelHeight,
        left_ + kPanelWidth / 2, kTop + kPanelHeight + 40, Escape(axis_));
    for (double power = low_; power <= high_; ++power) {
      const double value = std::pow(10, power);
      absl::StrAppendFormat(
          &text,
          "<line class=\"grid\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n"
          "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%s</text>\n",
          X(value), kTop, X(value), kTop + kPanelHeight, X(value), kTop + kPanelHeight + 18,
          label_(value));
    }
    for (int tick = 0; tick <= kRecallTicks; ++tick) {
      const double recall = tick / double{kRecallTicks};
      absl::StrAppendFormat(
          &text,
          "<line class=\"grid\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n"
          "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">%.1f</text>\n",
          left_, Y(recall), left_ + kPanelWidth, Y(recall), left_ - 6, Y(recall) + 4, recall);
    }
    return text;
  }

  std::string Line(const Series& series) const {
    std::string points, marks;
    for (const Point& point : series.points) {
      const double x = X(point.x);
      absl::StrAppendFormat(&points, "%.1f,%.1f ", x, Y(point.recall.median));
      absl::StrAppendFormat(
          &marks,
          "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\" "
          "stroke-opacity=\"0.5\"/>\n"
          "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\" fill=\"%s\"><title>%s</title></circle>\n",
          x, Y(point.recall.min), x, Y(point.recall.max), series.colour, x, Y(point.recall.median),
          series.colour,
          Escape(absl::StrFormat("%s, effort %d: recall %.3f (%.3f to %.3f) at %s", series.name,
                                 point.effort, point.recall.median, point.recall.min,
                                 point.recall.max, label_(point.x))));
    }
    return absl::StrCat("<polyline points=\"", points, "\" stroke=\"", series.colour,
                        "\" stroke-dasharray=\"", series.dashes, "\"/>\n", marks);
  }

  const double left_;
  const std::string title_;
  const std::string axis_;
  std::string (*const label_)(double);
  double low_ = 0;  // powers of ten
  double high_ = 1;
};

std::string Legend(const std::vector<Series>& all) {
  std::string text;
  for (size_t i = 0; i < all.size(); ++i) {
    const double x = 40 + kLegendColumn * static_cast<double>(i % kLegendColumns);
    const double y = kLegendTop + 20 * static_cast<double>(i / kLegendColumns);
    absl::StrAppendFormat(&text,
                          "<polyline points=\"%.0f,%.0f %.0f,%.0f\" stroke=\"%s\" "
                          "stroke-dasharray=\"%s\"/>\n"
                          "<text x=\"%.0f\" y=\"%.0f\">%s</text>\n",
                          x, y, x + 40, y, all[i].colour, all[i].dashes, x + 48, y + 4,
                          Escape(all[i].name));
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
@media (prefers-color-scheme: dark) {
  .paper { fill: #16181c; }
  text { fill: #e6e6e6; }
}
</style>
)";

}  // namespace

std::string IndexEvalPlot(const SweepResult& result) {
  const std::vector<Series> scanned = MakeSeries(result, [](const EffortResult& effort) {
    return Distribution::Of(effort, &FoundFigures::scanned_share).median;
  });
  const std::vector<Series> latency =
      MakeSeries(result, [](const EffortResult& effort) { return effort.group_search.p50_us; });
  Panel left(kLeft[0], absl::StrCat("Recall@", result.k), "share of keys scanned",
             [](double share) { return absl::StrFormat("%g %%", 100 * share); });
  Panel right(kLeft[1], absl::StrCat("Recall@", result.k), "p50 of a search for a group",
              [](double us) { return absl::StrFormat("%g us", us); });
  const double height =
      kLegendTop + 20 * static_cast<double>((scanned.size() - 1) / kLegendColumns) + 20;
  const std::string heading = absl::StrCat("terrace index-eval, ", FormatCount(result.heads.size()),
                                           " heads of ", FormatCount(result.head_keys[0]), " keys");
  return absl::StrCat(
      absl::StrFormat("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %.0f %.0f\" "
                      "width=\"%.0f\" height=\"%.0f\" role=\"img\">\n",
                      kWidth, height, kWidth, height),
      "<title>", heading, "</title>\n", kStyle,
      "<rect class=\"paper\" width=\"100%\" height=\"100%\"/>\n",
      "<text x=\"40\" y=\"24\" class=\"title\">", heading, "</text>\n", left.Draw(scanned),
      right.Draw(latency), Legend(scanned), "</svg>\n");
}

}  // namespace terrace
