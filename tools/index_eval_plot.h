#ifndef TERRACE_TOOLS_INDEX_EVAL_PLOT_H_
#define TERRACE_TOOLS_INDEX_EVAL_PLOT_H_

#include <string>

#include "tools/index_eval/index_sweep.h"

namespace terrace {

// An SVG document with two panels, recall against the share of keys scanned and against the median
// time of a search, both logarithmic; a colour for each index. Points are medians over heads, the
// bars through them go from the worst head to the best. It follows the viewer's light or dark
// scheme.
std::string IndexEvalPlot(const SweepResult& result);

}  // namespace terrace

#endif  // TERRACE_TOOLS_INDEX_EVAL_PLOT_H_
