#include "tools/weight_flags.h"

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "tools/byte_size.h"
#include "tools/command.h"

namespace terrace {

absl::Status WeightFlags::Check(Predictors several) const {
  if (!given()) return absl::OkStatus();
  if (dram == 0) {
    return absl::InvalidArgumentError("--weights-dram: needed with --weights");
  }
  size_t count = 0;
  for (const absl::string_view name : absl::StrSplit(predictors, ',')) {
    ++count;
    if (ParsePredictorKind(name).has_value()) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "--predictor: \"", name, "\" is not oracle, low-rank, core, gate-first or all"));
  }
  if (several == Predictors::kSeveral || count == 1) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("--predictor: ", count, " are given, not one"));
}

std::vector<PagedFfnOptions> WeightFlags::Options(const std::string& model) const {
  std::vector<PagedFfnOptions> all;
  for (const absl::string_view name : absl::StrSplit(predictors, ',')) {
    PagedFfnOptions options;
    options.model = model;
    options.bundles = bundles;
    options.dram_bytes = dram;
    options.window_tokens = window;
    options.predictor = *ParsePredictorKind(name);
    options.prefetch = prefetch;
    all.push_back(options);
  }
  return all;
}

void AddWeightFlags(CLI::App& command, WeightFlags& flags, Predictors predictors) {
  CLI::Option* const weights =
      command
          .add_option("--weights", flags.bundles,
                      "Page the feed-forward weights from this bundle file, which terrace pack "
                      "made of the model")
          ->type_name("FILE");
  AddByteSizeOption(command, "--weights-dram", flags.dram,
                    "Memory for paged weights, the directory of their file included")
      ->needs(weights);
  command
      .add_option(
          "--predictor", flags.predictors,
          absl::StrCat(predictors == Predictors::kSeveral
                           ? "Predictors to compare, separated by commas: "
                           : "What says which neurons a token needs: ",
                       "low-rank, of the file; oracle, exactly, with all gates in memory; core, "
                       "those of the prompt; gate-first, by reading gates first, from a file with "
                       "that layout; all, none is left out"))
      ->type_name(predictors == Predictors::kSeveral ? "LIST" : "NAME")
      ->needs(weights);
  command
      .add_option("--weights-window", flags.window,
                  "Keep the neurons that the last so many tokens used; 0: as many as fit")
      ->check(CLI::Validator(CheckUnsigned, ""))
      ->needs(weights);
  command
      .add_flag("--weights-prefetch", flags.prefetch,
                "Read what the predictor expects of the next layer meanwhile")
      ->needs(weights);
}

}  // namespace terrace
