# How every target of this project is made: one place for warnings, sanitizers and include roots.

set(TERRACE_WARNINGS -Wall -Wextra)
if(TERRACE_WERROR)
  list(APPEND TERRACE_WARNINGS -Werror)
endif()
if(CMAKE_CXX_COMPILER_ID MATCHES "Clang")
  list(APPEND TERRACE_WARNINGS -Wthread-safety)
  if(TERRACE_WERROR)
    list(APPEND TERRACE_WARNINGS -Werror=thread-safety)
  endif()
endif()

if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  # GCC 12 reports overlapping copies inside std::string that are not there (GCC bug 105651).
  list(APPEND TERRACE_WARNINGS -Wno-restrict)
endif()

if(TERRACE_FUZZ AND NOT CMAKE_CXX_COMPILER_ID MATCHES "Clang")
  message(FATAL_ERROR "TERRACE_FUZZ needs clang; without it the fuzzers run on their own main.")
elseif(TERRACE_FUZZ)
  # Coverage of the code under test is what guides libFuzzer; only a fuzzer links its main.
  set(TERRACE_SANITIZE "fuzzer-no-link,address,undefined")
endif()

set(TERRACE_SANITIZE_FLAGS "")
if(TERRACE_SANITIZE)
  set(TERRACE_SANITIZE_FLAGS -fsanitize=${TERRACE_SANITIZE} -fno-sanitize-recover=all
                             -fno-omit-frame-pointer)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # GCC's flow analysis sees the instrumentation and reports what is not there.
    list(APPEND TERRACE_WARNINGS -Wno-maybe-uninitialized -Wno-stringop-overflow)
    if(TERRACE_SANITIZE MATCHES "thread")
      # liburing's headers use fences, which TSan cannot follow; one thread owns each ring.
      list(APPEND TERRACE_WARNINGS -Wno-tsan)
    endif()
  endif()
endif()

# nvcc hands the flags of the host compiler on, and its own code for the host would not pass them all.
set(TERRACE_CUDA_FLAGS "")
if(TERRACE_WERROR)
  list(APPEND TERRACE_CUDA_FLAGS -Werror=all-warnings)
endif()

# terrace_target(NAME): language level, warnings, sanitizers and the repository root as include root.
function(terrace_target name)
  target_compile_features(${name} PUBLIC cxx_std_20)
  target_compile_options(
    ${name} PRIVATE "$<$<COMPILE_LANGUAGE:CXX>:${TERRACE_WARNINGS};${TERRACE_SANITIZE_FLAGS}>"
                    "$<$<COMPILE_LANGUAGE:CUDA>:${TERRACE_CUDA_FLAGS}>")
  target_link_options(${name} PRIVATE ${TERRACE_SANITIZE_FLAGS})
  target_include_directories(${name} PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>
                                            $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}/terrace>)
  # Position independent, so that the static libraries also fit into a user's shared one.
  set_target_properties(${name} PROPERTIES POSITION_INDEPENDENT_CODE ON CUDA_STANDARD 20
                                           CUDA_STANDARD_REQUIRED ON)
endfunction()

# terrace_library(NAME SOURCES...): the static library terrace_NAME, alias terrace::NAME.
function(terrace_library name)
  add_library(terrace_${name} STATIC ${ARGN})
  add_library(terrace::${name} ALIAS terrace_${name})
  set_target_properties(terrace_${name} PROPERTIES EXPORT_NAME ${name})
  terrace_target(terrace_${name})
endfunction()

# terrace_executable(NAME SOURCES...)
function(terrace_executable name)
  add_executable(${name} ${ARGN})
  terrace_target(${name})
  if(TARGET terrace_tsan_absl)
    target_link_libraries(${name} PRIVATE terrace_tsan_absl ${CMAKE_DL_LIBS})
  endif()
endfunction()

# terrace_choose_cuda(LIST): takes out of LIST, of sources, what does not fit TERRACE_WITH_CUDA. Files
# that need CUDA are cuda_*.cc and cuda_*.cu. Without it, cuda_x_stub.cc takes the place of cuda_x.cc.
function(terrace_choose_cuda list_name)
  set(chosen ${${list_name}})
  set(stubs ${${list_name}})
  list(FILTER stubs INCLUDE REGEX "/cuda_[^/]*_stub\\.cc$")
  if(TERRACE_WITH_CUDA)
    foreach(stub IN LISTS stubs)
      string(REGEX REPLACE "_stub\\.cc$" ".cc" replaced "${stub}")
      if(replaced IN_LIST chosen)
        list(REMOVE_ITEM chosen "${stub}")
      endif()
    endforeach()
  else()
    list(FILTER chosen EXCLUDE REGEX "/cuda_[^/]*$")
    list(APPEND chosen ${stubs})
  endif()
  set(${list_name} ${chosen} PARENT_SCOPE)
endfunction()
