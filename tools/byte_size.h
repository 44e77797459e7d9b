#ifndef TERRACE_TOOLS_BYTE_SIZE_H_
#define TERRACE_TOOLS_BYTE_SIZE_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace terrace {

// Reads a size in bytes as people write it: "4096", "128k", "64MiB", "1.5GiB". Case does not matter
// and blanks may stand before the unit. The units k, m, g, t and Ki, Mi, Gi, Ti, KiB, MiB, GiB, TiB
// count in 1024s; KB, MB, GB, TB count in 1000s; none or B is bytes. A fraction must come to whole
// bytes. kInvalidArgument naming the text and what is wrong with it.
absl::StatusOr<uint64_t> ParseByteSize(absl::string_view text);

// "64 MiB", "1.50 GiB", "512 B": the largest binary unit that the size reaches, two decimals unless
// it is whole.
std::string FormatByteSize(uint64_t bytes);

// Adds an option that takes such a size; `target` holds the default until one is given and must
// outlive parsing. A bad size is CLI11's ValidationError, which names the option.
CLI::Option* AddByteSizeOption(CLI::App& app, const std::string& name, uint64_t& target,
                               const std::string& description);
// The same without a default.
CLI::Option* AddByteSizeOption(CLI::App& app, const std::string& name,
                               std::optional<uint64_t>& target, const std::string& description);

}  // namespace terrace

#endif  // TERRACE_TOOLS_BYTE_SIZE_H_
