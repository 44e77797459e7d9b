#ifndef TERRACE_TOOLS_EVAL_INPUTS_H_
#define TERRACE_TOOLS_EVAL_INPUTS_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "tools/engine/engine.h"
#include "tools/engine/weight_products.h"
#include "tools/runtime_flags.h"

namespace terrace {

// What `terrace eval` reads: a model of bytes and a text, which is not empty.
struct EvalInputs {
  std::unique_ptr<Engine> engine;
  std::unique_ptr<WeightProducts> products;  // that the engine uses
  std::string text;
};

// With the products on the --device of `flags`. Errors name the folder, the file or the flag, and
// are those of reading, Engine::Load, CheckByteModel and UseDevice.
absl::StatusOr<EvalInputs> LoadEvalInputs(const std::string& model, const std::string& text,
                                          const RuntimeFlags& flags);

}  // namespace terrace

#endif  // TERRACE_TOOLS_EVAL_INPUTS_H_
