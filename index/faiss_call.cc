#include "index/faiss_call.h"

#include <omp.h>

#include <exception>
#include <new>

#include "absl/strings/str_cat.h"

namespace terrace {
namespace {

// OpenMP keeps this number for each thread that calls it.
class OneOpenMpThread {
 public:
  OneOpenMpThread() : before_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~OneOpenMpThread() { omp_set_num_threads(before_); }
  OneOpenMpThread(const OneOpenMpThread&) = delete;
  OneOpenMpThread& operator=(const OneOpenMpThread&) = delete;

 private:
  const int before_;
};

}  // namespace

absl::Status CallFaiss(absl::string_view what, absl::FunctionRef<void()> call) {
  const OneOpenMpThread one_thread;
  try {
    call();
    return absl::OkStatus();
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError(absl::StrCat(what, ": out of memory"));
  } catch (const std::exception& error) {
    return absl::InternalError(absl::StrCat(what, ": ", error.what()));
  }
}

}  // namespace terrace
