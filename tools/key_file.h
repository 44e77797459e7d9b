#ifndef TERRACE_TOOLS_KEY_FILE_H_
#define TERRACE_TOOLS_KEY_FILE_H_

#include <string>

#include "absl/status/statusor.h"
#include "io/block_cipher.h"

namespace terrace {

// The key in a regular file of exactly CipherKey::kBytes bytes. Anything else is an error that
// names --key-file and the path; it is found out without waiting and without reading more than
// that.
absl::StatusOr<CipherKey> ReadKeyFile(const std::string& path);

}  // namespace terrace

#endif  // TERRACE_TOOLS_KEY_FILE_H_
