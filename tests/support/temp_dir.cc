#include "tests/support/temp_dir.h"

#include <cstdlib>
#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "io/check.h"

namespace terrace {
namespace {

std::string DefaultParent() {
  const char* const from_environment = std::getenv("TMPDIR");
  return from_environment == nullptr || *from_environment == '\0' ? "/tmp" : from_environment;
}

}  // namespace

TempDir::TempDir(absl::string_view parent)
    : path_(absl::StrCat(parent.empty() ? DefaultParent() : std::string(parent),
                         "/terrace_test_XXXXXX")) {
  TERRACE_CHECK(::mkdtemp(path_.data()) != nullptr);
}

TempDir::~TempDir() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

std::string TempDir::Join(absl::string_view name) const { return absl::StrCat(path_, "/", name); }

}  // namespace terrace
