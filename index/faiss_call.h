#ifndef TERRACE_INDEX_FAISS_CALL_H_
#define TERRACE_INDEX_FAISS_CALL_H_

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace terrace {

// Runs `call`, which calls FAISS, on the calling thread alone: OpenMP gets no threads of its own
// beside those of ComputePool. What FAISS throws becomes kInternal with `what` and its message, or
// kResourceExhausted where memory ran out. Thread-safe.
absl::Status CallFaiss(absl::string_view what, absl::FunctionRef<void()> call);

}  // namespace terrace

#endif  // TERRACE_INDEX_FAISS_CALL_H_
