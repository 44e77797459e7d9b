#include "bench/measure.h"

#include <sys/resource.h>
#include <sys/utsname.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace terrace {

double CpuSeconds() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) { return time.tv_sec + time.tv_usec / 1e6; };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

double Quantile(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(share * static_cast<double>(values.size() - 1) + 0.5)];
}

void RunPairs(size_t pairs, absl::FunctionRef<void()> a, absl::FunctionRef<void()> b) {
  for (size_t pair = 0; pair < pairs; ++pair) {
    if (pair % 2 == 0) {
      a();
      b();
    } else {
      b();
      a();
    }
  }
}

std::string RatioText(const std::vector<double>& a, const std::vector<double>& b) {
  std::vector<double> ratios;
  for (size_t i = 0; i < a.size(); ++i) ratios.push_back(a[i] / b[i]);
  return absl::StrFormat("%.3f median, %.3f to %.3f (quartiles)", Quantile(ratios, 0.5),
                         Quantile(ratios, 0.25), Quantile(ratios, 0.75));
}

std::string SystemText() {
  utsname system = {};
  uname(&system);
  return absl::StrCat(system.sysname, " ", system.release);
}

}  // namespace terrace
