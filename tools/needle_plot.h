#ifndef TERRACE_TOOLS_NEEDLE_PLOT_H_
#define TERRACE_TOOLS_NEEDLE_PLOT_H_

#include <string>

#include "tools/eval_run.h"

namespace terrace {

// An SVG document with a heat map for each policy: the share of needles answered, by length and
// depth, as colour and number. It follows the viewer's light or dark scheme.
std::string NeedlePlot(const EvalReport& report);

}  // namespace terrace

#endif  // TERRACE_TOOLS_NEEDLE_PLOT_H_
