# Included by the build of llama-cpp-python right after its project() (CMAKE_PROJECT_INCLUDE).
if(CMAKE_CURRENT_SOURCE_DIR STREQUAL CMAKE_SOURCE_DIR)
  # The package forces its cache entry ON; a plain variable goes before it.
  set(LLAMA_BUILD_COMMON OFF)
  # Attention by rows: docs/decisions/0006-attention-by-rows.md.
  set(LLAMA_CPP "${CMAKE_SOURCE_DIR}/vendor/llama.cpp")
  file(STRINGS "${LLAMA_CPP}/ggml/src/ggml-cpu/ops.cpp" PATCHED REGEX "ggml_afterword_attention")
  if(NOT PATCHED)
    find_program(PATCH patch REQUIRED)
    execute_process(
      COMMAND "${PATCH}" -p1 --fuzz=0 --input "${CMAKE_CURRENT_LIST_DIR}/attention.patch"
      WORKING_DIRECTORY "${LLAMA_CPP}" COMMAND_ERROR_IS_FATAL ANY)
  endif()
  # Hundreds of small files that include the same large headers: together they compile faster.
  cmake_language(DEFER CALL set_target_properties llama PROPERTIES
    UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 12)
endif()
