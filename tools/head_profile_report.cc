#include "tools/head_profile_report.h"

#include "absl/strings/str_cat.h"
#include "tools/table.h"

namespace terrace {

std::string HeadProfileTable(const HeadProfile& profile) {
  Table table(
      {{"layer"}, {"KV head"}, {"mean outside"}, {"largest"}, {"--streaming-heads, with it"}});
  size_t streaming = 0;
  for (const HeadIndex& index : HeadsByNeed(profile)) {
    const HeadProfile::Head& head = profile.head(index.layer, index.kv_head);
    const double share =
        static_cast<double>(++streaming) / static_cast<double>(profile.heads.size());
    table.AddRow({absl::StrCat(index.layer), absl::StrCat(index.kv_head),
                  FormatPercent(head.mean_outside), FormatPercent(head.max_outside),
                  absl::StrCat(share)});
  }
  return absl::StrCat("Attention outside of ", profile.sink_tokens, " sinks and a window of ",
                      FormatCount(profile.window_tokens), ", of ", FormatCount(profile.queries),
                      " positions in ", FormatCount(profile.texts), " texts\n", table.ToString());
}

}  // namespace terrace
