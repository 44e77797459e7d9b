#include "tools/needle_plot.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "tools/table.h"

namespace terrace {
namespace {

// Pixels of the drawing.
constexpr double kCellWidth = 46;
constexpr double kCellHeight = 28;
constexpr double kLeft = 90;  // of the cells in their panel, after the lengths
constexpr double kTop = 34;   // of the cells in their panel, below the title
constexpr double kBottom = 50;
constexpr double kMargin = 20;
constexpr double kHeading = 40;

// Two ends that colour-blind readers can tell apart, by lightness too.
struct Colour {
  double red, green, blue;
};
constexpr Colour kNone = {120, 28, 60};
constexpr Colour kAll = {250, 215, 90};
constexpr double kDarkText = 0.55;  // cells of this share and above are light

std::string Escape(const std::string& text) {
  return absl::StrReplaceAll(text,
                             {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}, {"\"", "&quot;"}});
}

std::string Fill(double share) {
  const auto mix = [&](double none, double all) {
    return static_cast<int>(std::lround(none + (all - none) * share));
  };
  return absl::StrFormat("#%02x%02x%02x", mix(kNone.red, kAll.red), mix(kNone.green, kAll.green),
                         mix(kNone.blue, kAll.blue));
}

std::string CellText(const NeedleCell& cell, double x, double y) {
  if (cell.asked == 0) {
    return absl::StrFormat(
        "<rect class=\"empty\" x=\"%.0f\" y=\"%.0f\" width=\"%.0f\" height=\"%.0f\"/>\n", x, y,
        kCellWidth, kCellHeight);
  }
  const double share = static_cast<double>(cell.answered) / static_cast<double>(cell.asked);
  return absl::StrFormat(
      "<rect x=\"%.0f\" y=\"%.0f\" width=\"%.0f\" height=\"%.0f\" fill=\"%s\">"
      "<title>%d of %d</title></rect>\n"
      "<text class=\"%s\" x=\"%.0f\" y=\"%.0f\" text-anchor=\"middle\">%.2f</text>\n",
      x, y, kCellWidth, kCellHeight, Fill(share), cell.answered, cell.asked,
      share >= kDarkText ? "dark" : "light", x + kCellWidth / 2, y + kCellHeight / 2 + 4, share);
}

double PanelHeight(const PolicyResult& result) {
  return kTop + kCellHeight * static_cast<double>(result.needles.size()) + kBottom;
}

std::string Panel(const PolicyResult& result, double top) {
  const NeedleCell total = result.NeedleTotal();
  std::string text =
      absl::StrFormat("<text class=\"title\" x=\"%.0f\" y=\"%.0f\">%s: %d of %d</text>\n", kMargin,
                      top + 20, Escape(result.label), total.answered, total.asked);
  double y = top + kTop;
  for (const NeedleRow& row : result.needles) {
    absl::StrAppendFormat(&text, "<text x=\"%.0f\" y=\"%.0f\" text-anchor=\"end\">%s</text>\n",
                          kLeft - 8, y + kCellHeight / 2 + 4, FormatCount(row.length_tokens));
    double x = kLeft;
    for (const NeedleCell& cell : row.cells) {
      text += CellText(cell, x, y);
      x += kCellWidth;
    }
    y += kCellHeight;
  }
  double x = kLeft + kCellWidth / 2;
  for (const NeedleCell& cell : result.needles[0].cells) {
    absl::StrAppendFormat(&text, "<text x=\"%.0f\" y=\"%.0f\" text-anchor=\"middle\">%.2f</text>\n",
                          x, y + 16, cell.depth);
    x += kCellWidth;
  }
  return text;
}

constexpr char kStyle[] = R"(<style>
.paper { fill: #ffffff; }
text { font: 13px sans-serif; fill: #222222; }
.title { font-weight: bold; font-size: 15px; }
.empty { fill: none; stroke: #888888; stroke-opacity: 0.25; }
@media (prefers-color-scheme: dark) {
  .paper { fill: #16181c; }
  text { fill: #e6e6e6; }
}
.light { fill: #ffffff; }
.dark { fill: #222222; }
</style>
)";

}  // namespace

std::string NeedlePlot(const EvalReport& report) {
  const std::string heading = "Needles answered, by length in tokens and depth in the text";
  size_t columns = 0;
  std::string panels;
  double top = kHeading;
  for (const PolicyResult& result : report.policies) {
    if (result.needles.empty()) continue;
    columns = std::max(columns, result.needles[0].cells.size());
    panels += Panel(result, top);
    top += PanelHeight(result);
  }
  constexpr double kLeastWidth = 520;  // of the heading
  const double width =
      std::max(kLeft + kCellWidth * static_cast<double>(columns) + kMargin, kLeastWidth);
  return absl::StrCat(
      absl::StrFormat("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %.0f %.0f\" "
                      "width=\"%.0f\" height=\"%.0f\" role=\"img\">\n",
                      width, top, width, top),
      "<title>", heading, "</title>\n", kStyle,
      "<rect class=\"paper\" width=\"100%\" height=\"100%\"/>\n",
      absl::StrFormat("<text x=\"%.0f\" y=\"24\" class=\"title\">%s</text>\n", kMargin, heading),
      panels, "</svg>\n");
}

}  // namespace terrace
