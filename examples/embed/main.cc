// What an embedding engine does with Terrace: keep the keys and values of a long sequence in DRAM
// and on NVMe, attend to them, save the context and load it again.
//
//   embed DIR

#include <cmath>
#include <iostream>
#include <vector>

#include "runtime/runtime.h"

namespace {

constexpr size_t kTokens = 4096;
constexpr size_t kChunk = 256;

// Stands in for the projections of a model: [tokens, heads, head_dim].
std::vector<float> Project(int which, int64_t position, size_t tokens, size_t width) {
  std::vector<float> rows(tokens * width);
  for (size_t i = 0; i < rows.size(); ++i) {
    rows[i] = std::sin(
        0.37f * static_cast<float>(which + 1) *
        static_cast<float>(position * static_cast<int64_t>(width) + static_cast<int64_t>(i)));
  }
  return rows;
}

// Runs `tokens` tokens through every layer and returns the attention of the last.
absl::StatusOr<std::vector<float>> Step(terrace::Context& context, const terrace::ModelShape& shape,
                                        size_t tokens) {
  const int64_t first = context.tokens();
  const size_t kv_width = shape.kv_heads * shape.head_dim;
  const size_t query_width = shape.query_heads * shape.head_dim;
  std::vector<int64_t> positions;
  for (size_t i = 0; i < tokens; ++i) positions.push_back(first + static_cast<int64_t>(i));
  std::vector<float> out(tokens * query_width);
  for (uint32_t layer = 0; layer < shape.layers; ++layer) {
    const std::vector<float> keys = Project(0, first, tokens, kv_width);
    const std::vector<float> values = Project(1, first, tokens, kv_width);
    const std::vector<float> queries = Project(2, first, tokens, query_width);
    absl::Status status =
        context.Append(layer, {.keys = keys.data(), .values = values.data(), .tokens = tokens});
    if (status.ok()) {
      status = context.Attend(layer, {.queries = queries.data(), .positions = positions},
                              {.out = absl::MakeSpan(out)});
    }
    if (!status.ok()) return status;
  }
  return std::vector<float>(out.end() - static_cast<ptrdiff_t>(query_width), out.end());
}

absl::Status Run(const char* directory) {
  terrace::RuntimeOptions options;
  options.shape = {.layers = 2, .query_heads = 8, .kv_heads = 2, .head_dim = 64};
  options.lookup = {.kind = terrace::LookupKind::kQuest, .blocks = 8};
  options.tiers.dram_bytes = 1 << 20;
  options.tiers.nvme_bytes = 64 << 20;
  options.tiers.nvme_dir = directory;
  auto runtime = terrace::Runtime::Open(options);
  if (!runtime.ok()) return runtime.status();
  auto context = (*runtime)->NewContext();
  if (!context.ok()) return context.status();
  for (size_t done = 0; done < kTokens; done += kChunk) {
    const auto prefill = Step(**context, options.shape, kChunk);
    if (!prefill.ok()) return prefill.status();
  }
  if (absl::Status status = (*context)->Save("chat"); !status.ok()) return status;
  const auto expected = Step(**context, options.shape, 1);
  if (!expected.ok()) return expected.status();

  auto loaded = (*runtime)->Load("chat");  // or in another process, with options.tiers.reuse
  if (!loaded.ok()) return loaded.status();
  const auto got = Step(**loaded, options.shape, 1);
  if (!got.ok()) return got.status();
  return *got == *expected ? absl::OkStatus() : absl::DataLossError("the loaded context differs");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: embed DIR\n";
    return 2;
  }
  const absl::Status status = Run(argv[1]);
  std::cout << (status.ok() ? "4096 tokens kept, saved, loaded and attended to\n"
                            : status.ToString() + "\n");
  return status.ok() ? 0 : 1;
}
