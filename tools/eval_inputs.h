#ifndef TERRACE_TOOLS_EVAL_INPUTS_H_
#define TERRACE_TOOLS_EVAL_INPUTS_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "tools/engine/engine.h"

namespace terrace {

// What `terrace eval` reads: a model of bytes and a text, which is not empty.
struct EvalInputs {
  std::unique_ptr<Engine> engine;
  std::string text;
};

// Errors name the folder or the file, and are those of reading, Engine::Load and CheckByteModel.
absl::StatusOr<EvalInputs> LoadEvalInputs(const std::string& model, const std::string& text);

}  // namespace terrace

#endif  // TERRACE_TOOLS_EVAL_INPUTS_H_
