#ifndef TERRACE_IO_CHECKSUM_AVX2_H_
#define TERRACE_IO_CHECKSUM_AVX2_H_

#include <cstddef>
#include <cstdint>

namespace terrace {

// As ChecksumPages and FirstCorruptPage, for processors with AVX2; x86-64 only.
void ChecksumPagesAvx2(const unsigned char* bytes, size_t pages, uint32_t* checksums);
size_t FirstCorruptPageAvx2(const unsigned char* bytes, size_t pages, const uint32_t* checksums);

}  // namespace terrace

#endif  // TERRACE_IO_CHECKSUM_AVX2_H_
