#ifndef TERRACE_IO_CHECKSUM_H_
#define TERRACE_IO_CHECKSUM_H_

#include <cstddef>
#include <cstdint>

#include "absl/types/span.h"
#include "io/aligned_buffer.h"

namespace terrace {

// The checksum of one page: the low 32 bits of XXH3-64, so that the directory stays within its
// budget of bytes a block.
using PageChecksum = uint32_t;

// XXH3-64 of a record, for headers and superblocks.
uint64_t Checksum64(absl::Span<const std::byte> bytes);

// Writes the checksum of each page of `bytes` ([n * kPageBytes]) to `checksums` ([n]).
void ChecksumPages(absl::Span<const std::byte> bytes, absl::Span<PageChecksum> checksums);

// Index of the first page of `bytes` ([n * kPageBytes]) that differs from `checksums` ([n]), or n
// when all agree.
size_t FirstCorruptPage(absl::Span<const std::byte> bytes,
                        absl::Span<const PageChecksum> checksums);

}  // namespace terrace

#endif  // TERRACE_IO_CHECKSUM_H_
