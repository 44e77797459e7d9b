#ifndef TERRACE_TOOLS_SSD_PLOT_H_
#define TERRACE_TOOLS_SSD_PLOT_H_

#include <string>

#include "io/device_profile.h"

namespace terrace {

// An SVG document with two panels, bandwidth and p99 latency against depth, both on logarithmic
// axes but for the bandwidth; a colour for each block size and a dash pattern for each op. It
// follows the viewer's light or dark scheme. Rows that moved nothing are left out.
std::string SsdPlot(const DeviceProfile& profile);

}  // namespace terrace

#endif  // TERRACE_TOOLS_SSD_PLOT_H_
