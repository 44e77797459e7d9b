# Installs the build into an empty prefix, then uses it the two ways a stranger can: through
# find_package from that prefix, where every installed header must compile, and through
# add_subdirectory of the source tree (configured only: building it again would prove little more).
cmake_minimum_required(VERSION 3.25)

function(run what)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE result OUTPUT_VARIABLE output
                  ERROR_VARIABLE output)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "${what} failed (${result}):\n${output}")
  endif()
  message(STATUS "${what}: ok")
endfunction()

set(toolchain -G "${generator}" -D "CMAKE_CXX_COMPILER=${compiler}" -D
              "CMAKE_BUILD_TYPE=${build_type}")
if(launcher)
  list(APPEND toolchain -D "CMAKE_CXX_COMPILER_LAUNCHER=${launcher}")
endif()

file(REMOVE_RECURSE "${work_dir}")
set(prefix "${work_dir}/prefix")
run("install" "${CMAKE_COMMAND}" --install "${build_dir}" --prefix "${prefix}")

# A copy, so that nothing can be found by a path relative to the source tree.
file(COPY "${source_dir}/examples/embed" DESTINATION "${work_dir}")
run("configure with find_package" "${CMAKE_COMMAND}" -S "${work_dir}/embed" -B
    "${work_dir}/embed-build" ${toolchain} -D "CMAKE_PREFIX_PATH=${prefix}")
run("build" "${CMAKE_COMMAND}" --build "${work_dir}/embed-build")
run("run" "${work_dir}/embed-build/embed" "${work_dir}")

# An installed header that needs one that is not installed fails here.
file(GLOB_RECURSE headers RELATIVE "${prefix}/include/terrace" "${prefix}/include/terrace/*.h")
list(TRANSFORM headers REPLACE "(.+)" "#include \"\\1\"")
list(JOIN headers "\n" includes)
file(WRITE "${work_dir}/headers/headers.cc" "${includes}\n")
file(
  WRITE "${work_dir}/headers/CMakeLists.txt"
  "cmake_minimum_required(VERSION 3.25)
project(headers LANGUAGES CXX)
find_package(terrace 0.1 REQUIRED)
add_library(headers OBJECT headers.cc)
target_link_libraries(headers PRIVATE terrace::terrace)
")
run("configure all headers" "${CMAKE_COMMAND}" -S "${work_dir}/headers" -B
    "${work_dir}/headers-build" ${toolchain} -D "CMAKE_PREFIX_PATH=${prefix}")
run("compile all headers" "${CMAKE_COMMAND}" --build "${work_dir}/headers-build")

file(
  WRITE "${work_dir}/subdirectory/CMakeLists.txt"
  "cmake_minimum_required(VERSION 3.25)
project(subdirectory LANGUAGES CXX)
add_subdirectory(\"${source_dir}\" terrace)
add_executable(embed \"${source_dir}/examples/embed/main.cc\")
target_link_libraries(embed PRIVATE terrace::terrace)
if(TERRACE_WERROR OR TERRACE_BUILD_TESTS OR TERRACE_BUILD_TOOLS OR TERRACE_BUILD_BENCH)
  message(FATAL_ERROR \"an embedder gets tests, tools or warnings as errors\")
endif()
")
run("configure with add_subdirectory" "${CMAKE_COMMAND}" -S "${work_dir}/subdirectory" -B
    "${work_dir}/subdirectory-build" ${toolchain})

file(REMOVE_RECURSE "${work_dir}")
