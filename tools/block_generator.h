#ifndef TERRACE_TOOLS_BLOCK_GENERATOR_H_
#define TERRACE_TOOLS_BLOCK_GENERATOR_H_

#include <cstddef>
#include <cstdint>
#include <optional>

#include "absl/types/span.h"

namespace terrace {

// The bytes that stand for a "computed" block: incompressible, a function of seed, id and position
// alone, so that any misplaced, mixed-up or damaged block is told from the right one. A shorter
// block is a prefix of a longer one with the same seed and id. Pure and thread-safe; no allocation.
// REQUIRES, for both: the length is a multiple of 8.
void GenerateBlock(uint64_t seed, uint64_t id, absl::Span<std::byte> block);

// Index of the first byte of `block` that GenerateBlock would not have written, if any.
std::optional<size_t> FirstWrongByte(uint64_t seed, uint64_t id, absl::Span<const std::byte> block);

}  // namespace terrace

#endif  // TERRACE_TOOLS_BLOCK_GENERATOR_H_
