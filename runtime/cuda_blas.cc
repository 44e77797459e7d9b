#include "runtime/cuda_blas.h"

#include <cublas_v2.h>
#include <dlfcn.h>

#include <limits>
#include <string>

#include "absl/strings/str_cat.h"
#include "io/check.h"

namespace terrace {
namespace {

// The cast chooses among the overloads of the header; it fails to compile where none is the same.
using GemmFunction =
    decltype(static_cast<cublasStatus_t (*)(
                 cublasHandle_t, cublasOperation_t, cublasOperation_t, int m, int n, int k,
                 const void* alpha, const void* a, cudaDataType, int lda, const void* b,
                 cudaDataType, int ldb, const void* beta, void* c, cudaDataType, int ldc,
                 cublasComputeType_t, cublasGemmAlgo_t)>(&cublasGemmEx));

// The functions of the library that are used here, with the types that its header gives them.
struct Library {
  decltype(&cublasCreate_v2) create = nullptr;
  decltype(&cublasDestroy_v2) destroy = nullptr;
  decltype(&cublasSetStream_v2) set_stream = nullptr;
  GemmFunction gemm = nullptr;
  decltype(&cublasGetStatusString) text = nullptr;
  absl::Status status;
};

template <typename Function>
void Find(void* library, const char* name, Function& function, Library& found) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  if (function != nullptr || !found.status.ok()) return;
  found.status = absl::UnavailableError(absl::StrCat("cuBLAS: the library has no ", name));
}

// The version of the toolkit first, then the other one whose functions are the same. The search
// path goes first, then where the toolkit is installed unless told otherwise.
void* OpenLibrary(std::string& errors) {
  constexpr int kVersions[] = {CUBLAS_VER_MAJOR, CUBLAS_VER_MAJOR == 12 ? 13 : 12};
  for (const int version : kVersions) {
    for (const char* const folder : {"", "/usr/local/cuda/lib64/"}) {
      const std::string name = absl::StrCat(folder, "libcublas.so.", version);
      void* const library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
      if (library != nullptr) return library;
      absl::StrAppend(&errors, errors.empty() ? "" : "; ", dlerror());
    }
  }
  return nullptr;
}

Library Load() {
  Library found;
  std::string errors;
  void* const library = OpenLibrary(errors);
  if (library == nullptr) {
    found.status = absl::UnavailableError(absl::StrCat("cuBLAS is not installed: ", errors));
    return found;
  }
  Find(library, "cublasCreate_v2", found.create, found);
  Find(library, "cublasDestroy_v2", found.destroy, found);
  Find(library, "cublasSetStream_v2", found.set_stream, found);
  Find(library, "cublasGemmEx", found.gemm, found);
  Find(library, "cublasGetStatusString", found.text, found);
  return found;
}

// Opened once and never closed: the library holds state of the device's context.
const Library& TheLibrary() {
  static const Library* const library = new Library(Load());
  return *library;
}

absl::StatusCode CodeOf(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_NOT_INITIALIZED:
    case CUBLAS_STATUS_ARCH_MISMATCH:
    case CUBLAS_STATUS_EXECUTION_FAILED:
      return absl::StatusCode::kUnavailable;
    case CUBLAS_STATUS_ALLOC_FAILED:
      return absl::StatusCode::kResourceExhausted;
    default:
      return absl::StatusCode::kInternal;
  }
}

absl::Status BlasStatus(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
  return absl::Status(CodeOf(status),
                      absl::StrCat("cuBLAS: ", what, ": ", TheLibrary().text(status), " (",
                                   static_cast<int>(status), ")"));
}

int ToBlas(size_t size) {
  TERRACE_CHECK(size <= static_cast<size_t>(std::numeric_limits<int>::max()));
  return static_cast<int>(size);
}

}  // namespace

absl::StatusOr<std::unique_ptr<CudaBlas>> CudaBlas::Create(cudaStream_t stream) {
  const Library& library = TheLibrary();
  if (!library.status.ok()) return library.status;
  cublasHandle_t handle = nullptr;
  absl::Status status = BlasStatus(library.create(&handle), "cannot start");
  if (!status.ok()) return status;
  std::unique_ptr<CudaBlas> blas(new CudaBlas(handle));
  status = BlasStatus(library.set_stream(handle, stream), "stream");
  if (!status.ok()) return status;
  return blas;
}

CudaBlas::~CudaBlas() { (void)TheLibrary().destroy(static_cast<cublasHandle_t>(handle_)); }

absl::Status CudaBlas::MultiplyTransposed(CudaRows a, CudaRows b, float* out) {
  TERRACE_CHECK(a.width == b.width && a.stride >= a.width && b.stride >= b.width);
  if (a.count == 0 || b.count == 0) return absl::OkStatus();
  // cuBLAS counts columns where rows are meant here. What is [m, n] by rows is [n, m] to it, so it
  // computes out^T = b * a^T, of which it gets b as b^T.
  const float one = 1;
  const float zero = 0;
  return BlasStatus(
      TheLibrary().gemm(static_cast<cublasHandle_t>(handle_), CUBLAS_OP_T, CUBLAS_OP_N,
                        ToBlas(b.count), ToBlas(a.count), ToBlas(a.width), &one, b.data, CUDA_R_32F,
                        ToBlas(b.stride), a.data, CUDA_R_32F, ToBlas(a.stride), &zero, out,
                        CUDA_R_32F, ToBlas(b.count), CUBLAS_COMPUTE_32F_PEDANTIC,
                        CUBLAS_GEMM_DEFAULT),
      "product");
}

}  // namespace terrace
