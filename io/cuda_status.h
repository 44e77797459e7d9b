#ifndef TERRACE_IO_CUDA_STATUS_H_
#define TERRACE_IO_CUDA_STATUS_H_

#include <cuda_runtime_api.h>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace terrace {

// OK, or an error that names `what` was being done and the driver's name, number and text:
// kUnavailable when no device answers, or one is lost; kResourceExhausted when memory does not
// suffice; kInternal otherwise. Forgets an error that the next call would report again, where that
// is possible. Private, for files that are built with CUDA only.
absl::Status CudaStatus(cudaError_t error, absl::string_view what);

}  // namespace terrace

#endif  // TERRACE_IO_CUDA_STATUS_H_
