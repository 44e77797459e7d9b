#ifndef TERRACE_TOOLS_DECODE_EVAL_REPORT_H_
#define TERRACE_TOOLS_DECODE_EVAL_REPORT_H_

#include <string>

#include "nlohmann/json_fwd.hpp"
#include "tools/index_eval/decode_eval.h"

namespace terrace {

// The result of `terrace index-eval --decode` as tables for people, and as JSON.
std::string DecodeEvalText(const DecodeEvalResult& result);
nlohmann::ordered_json DecodeEvalJson(const DecodeEvalResult& result);

}  // namespace terrace

#endif  // TERRACE_TOOLS_DECODE_EVAL_REPORT_H_
