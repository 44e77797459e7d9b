# Install rules and the CMake package, so that find_package(terrace) works from the prefix.
include(CMakePackageConfigHelpers)

set(package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/terrace")

foreach(library IN ITEMS io tiers index runtime)
  if(TARGET terrace_${library})
    install(TARGETS terrace_${library} EXPORT terraceTargets
            ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}")
    # Headers that no public header includes stay private: nobody can come to depend on them.
    install(
      DIRECTORY "${PROJECT_SOURCE_DIR}/${library}/"
      DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}/terrace/${library}"
      FILES_MATCHING
      PATTERN "*.h"
      PATTERN "uring_device.h" EXCLUDE
      PATTERN "thread_device.h" EXCLUDE
      PATTERN "opened_file.h" EXCLUDE
      PATTERN "checksum_avx2.h" EXCLUDE
      PATTERN "checksum_pages.h" EXCLUDE
      PATTERN "cuda_status.h" EXCLUDE
      PATTERN "copy_plan.h" EXCLUDE
      PATTERN "copy_ranges.h" EXCLUDE
      PATTERN "cuda_batch.h" EXCLUDE
      PATTERN "cuda_memory.h" EXCLUDE
      PATTERN "cuda_blas.h" EXCLUDE
      PATTERN "cuda_queue.h" EXCLUDE
      PATTERN "cuda_vectors.h" EXCLUDE
      PATTERN "cuda_handles.h" EXCLUDE
      PATTERN "cuda_neighbours.h" EXCLUDE
      PATTERN "device_attention.h" EXCLUDE
      PATTERN "device_rows.h" EXCLUDE
      PATTERN "device_scoring.h" EXCLUDE
      PATTERN "scoring_checks.h" EXCLUDE
      PATTERN "top_k.h" EXCLUDE
      PATTERN "cuda_*_kernels.h" EXCLUDE
      PATTERN "cuda_probe.h" EXCLUDE
      PATTERN "attention_pieces.h" EXCLUDE
      PATTERN "attention_plan.h" EXCLUDE
      PATTERN "device_file.h" EXCLUDE
      PATTERN "tier_file.h" EXCLUDE
      PATTERN "attend_pass.h" EXCLUDE
      PATTERN "cluster_lookup.h" EXCLUDE
      PATTERN "context_index.h" EXCLUDE
      PATTERN "graph_lookup.h" EXCLUDE
      PATTERN "checked_file.h" EXCLUDE
      PATTERN "runtime_core.h" EXCLUDE
      PATTERN "saved_contexts.h" EXCLUDE
      PATTERN "best_keys.h" EXCLUDE
      PATTERN "cluster_kernels.h" EXCLUDE
      PATTERN "exact_knn.h" EXCLUDE
      PATTERN "faiss_call.h" EXCLUDE
      PATTERN "finite_rows.h" EXCLUDE
      PATTERN "graph_beam.h" EXCLUDE
      PATTERN "graph_build.h" EXCLUDE
      PATTERN "graph_entries.h" EXCLUDE
      PATTERN "graph_search.h" EXCLUDE
      PATTERN "key_graph.h" EXCLUDE
      PATTERN "key_input.h" EXCLUDE
      PATTERN "nearest_centroid.h" EXCLUDE
      PATTERN "pinned_columns.h" EXCLUDE
      PATTERN "prefetch.h" EXCLUDE
      PATTERN "query_metric.h" EXCLUDE
      PATTERN "unique_fd.h" EXCLUDE)
  endif()
endforeach()
install(TARGETS terrace_all EXPORT terraceTargets)
if(TARGET terrace)
  install(TARGETS terrace RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}")
endif()

install(EXPORT terraceTargets NAMESPACE terrace:: DESTINATION "${package_dir}")
configure_package_config_file(
  "${PROJECT_SOURCE_DIR}/cmake/terraceConfig.cmake.in"
  "${PROJECT_BINARY_DIR}/terraceConfig.cmake" INSTALL_DESTINATION "${package_dir}")
write_basic_package_version_file("${PROJECT_BINARY_DIR}/terraceConfigVersion.cmake"
                                 COMPATIBILITY SameMinorVersion)
install(
  FILES "${PROJECT_BINARY_DIR}/terraceConfig.cmake"
        "${PROJECT_BINARY_DIR}/terraceConfigVersion.cmake"
        "${PROJECT_SOURCE_DIR}/cmake/Findliburing.cmake"
        "${PROJECT_SOURCE_DIR}/cmake/FindxxHash.cmake"
  DESTINATION "${package_dir}")
install(FILES "${PROJECT_SOURCE_DIR}/LICENSE" DESTINATION "${CMAKE_INSTALL_DOCDIR}")
