# Decides whether the CUDA code is built: TERRACE_CUDA is AUTO (where nvcc is found and works), ON (or
# the configuration fails) or OFF. Sets TERRACE_WITH_CUDA. Public headers are the same either way: the
# sources that are linked differ, and without CUDA they say so in a Status.
set(TERRACE_CUDA "AUTO" CACHE STRING "Build the CUDA code: AUTO, ON or OFF")
set_property(CACHE TERRACE_CUDA PROPERTY STRINGS AUTO ON OFF)
set(TERRACE_CUDA_ARCHITECTURES "90" CACHE STRING
    "Architectures of the CUDA code, as for CMAKE_CUDA_ARCHITECTURES; 80 to 90 are supported")

set(TERRACE_WITH_CUDA OFF)
if(NOT TERRACE_CUDA)
  return()
endif()

# Finds nvcc outside the search path too, where CMake's own search does not look.
find_package(CUDAToolkit 12.2 QUIET)
find_path(TERRACE_CUBLAS_INCLUDE_DIR cublas_v2.h HINTS ${CUDAToolkit_INCLUDE_DIRS} NO_DEFAULT_PATH)
mark_as_advanced(TERRACE_CUBLAS_INCLUDE_DIR)
if(CUDAToolkit_FOUND AND TARGET CUDA::cudart_static AND CUDAToolkit_NVCC_EXECUTABLE
   AND TERRACE_CUBLAS_INCLUDE_DIR)
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES "${TERRACE_CUDA_ARCHITECTURES}")
  endif()
  # By the environment, because check_language tries nothing where the compiler is set already.
  if(NOT DEFINED CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
    set(ENV{CUDACXX} "${CUDAToolkit_NVCC_EXECUTABLE}")
  endif()
  if(NOT DEFINED ENV{CUDAHOSTCXX} AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    set(ENV{CUDAHOSTCXX} "${CMAKE_CXX_COMPILER}")
  endif()
  # Tries it in a project of its own, so that a toolkit that does not fit is no error.
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    set(TERRACE_WITH_CUDA ON)
  endif()
endif()

if(TERRACE_WITH_CUDA)
  message(STATUS "CUDA ${CUDAToolkit_VERSION} for ${CMAKE_CUDA_ARCHITECTURES}: ${CMAKE_CUDA_COMPILER}")
elseif(TERRACE_CUDA STREQUAL "AUTO")
  message(STATUS "CUDA: no toolkit that works; built without it")
else()
  message(FATAL_ERROR "TERRACE_CUDA=${TERRACE_CUDA}, but no toolkit from 12.2 on with nvcc, the "
                      "static runtime and the header of cuBLAS works here; set CUDAToolkit_ROOT, "
                      "or TERRACE_CUDA=OFF.")
endif()
