#ifndef TERRACE_TOOLS_CLUSTER_ATTENTION_REPORT_H_
#define TERRACE_TOOLS_CLUSTER_ATTENTION_REPORT_H_

#include <string>
#include <vector>

#include "nlohmann/json_fwd.hpp"
#include "tools/index_eval/index_sweep.h"

namespace terrace {

// build_seconds, bytes_per_key and kv_share of each head, and for each share of the keys the
// figures of whole_clusters and of single_keys, as they are spread over heads and head by head.
// `names` are those of the heads.
nlohmann::ordered_json ClusterAttentionJson(const std::vector<ClusterAttention>& heads,
                                            const std::vector<std::string>& names);
// For people; empty if no index of `result` has it.
std::string ClusterAttentionTable(const SweepResult& result);

}  // namespace terrace

#endif  // TERRACE_TOOLS_CLUSTER_ATTENTION_REPORT_H_
