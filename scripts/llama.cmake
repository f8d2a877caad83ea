# Included by the build of llama-cpp-python right after its project() (CMAKE_PROJECT_INCLUDE).
if(CMAKE_CURRENT_SOURCE_DIR STREQUAL CMAKE_SOURCE_DIR)
  # The package forces its cache entry ON; a plain variable goes before it.
  set(LLAMA_BUILD_COMMON OFF)
  # Hundreds of small files that include the same large headers: together they compile faster.
  cmake_language(DEFER CALL set_target_properties llama PROPERTIES
    UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 12)
endif()
