#include "tools/eval_inputs.h"

#include <cstdint>
#include <utility>

#include "absl/strings/str_cat.h"
#include "tools/engine/byte_tokenizer.h"
#include "tools/engine/input_file.h"

namespace terrace {
namespace {

constexpr uint64_t kMaxTextBytes = uint64_t{1} << 30;

}  // namespace

absl::StatusOr<EvalInputs> LoadEvalInputs(const std::string& model, const std::string& text,
                                          const RuntimeFlags& flags) {
  absl::StatusOr<std::string> bytes = ReadWholeFile(text, kMaxTextBytes);
  if (!bytes.ok()) return bytes.status();
  if (bytes->empty()) return absl::InvalidArgumentError(absl::StrCat(text, ": is empty"));
  absl::StatusOr<std::unique_ptr<Engine>> engine =
      Engine::Load(model, {.chunk_tokens = kChunkTokens});
  if (!engine.ok()) return engine.status();
  if (absl::Status status = CheckByteModel((*engine)->config()); !status.ok()) {
    return absl::Status(status.code(), absl::StrCat(model, ": ", status.message()));
  }
  auto products = UseDevice(flags, **engine);
  if (!products.ok()) return products.status();
  return EvalInputs{
      .engine = *std::move(engine), .products = *std::move(products), .text = *std::move(bytes)};
}

}  // namespace terrace
