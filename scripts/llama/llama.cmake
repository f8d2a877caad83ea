# Included by the build of llama-cpp-python right after its project() (CMAKE_PROJECT_INCLUDE).
if(CMAKE_CURRENT_SOURCE_DIR STREQUAL CMAKE_SOURCE_DIR)
  # The package forces its cache entry ON; a plain variable goes before it.
  set(LLAMA_BUILD_COMMON OFF)
  # Attention by rows, packed weights, ragged batches, copies of sequences and logits, a quick start, windows, memory
  # that is counted, texts, numbers and exceptions that end no process: docs/decisions/0006, 0007, 0009, 0012 to 0016.
  # packed.h tells that it is done.
  file(GLOB FILES "${CMAKE_CURRENT_LIST_DIR}/*.patch" "${CMAKE_CURRENT_LIST_DIR}/*.cpp"
    "${CMAKE_CURRENT_LIST_DIR}/*.h")
  set(DIGESTS "")
  foreach(FILE ${FILES})
    file(SHA256 "${FILE}" DIGEST)
    string(APPEND DIGESTS "${DIGEST}")
  endforeach()
  string(SHA256 DIGEST "${DIGESTS}")
  string(SUBSTRING "${DIGEST}" 0 12 DIGEST)
  add_compile_definitions(AFTERWORD_CHANGES="${DIGEST}")
  set(LLAMA_CPP "${CMAKE_SOURCE_DIR}/vendor/llama.cpp")
  if(NOT EXISTS "${LLAMA_CPP}/ggml/src/ggml-cpu/packed.h")
    find_program(PATCH patch REQUIRED)
    foreach(CHANGE
        attention ragged packed cells logits start graphs windows sgemm memory numbers regex tokens hybrids)
      execute_process(
        COMMAND "${PATCH}" -p1 --fuzz=0 --input "${CMAKE_CURRENT_LIST_DIR}/${CHANGE}.patch"
        WORKING_DIRECTORY "${LLAMA_CPP}" COMMAND_ERROR_IS_FATAL ANY)
    endforeach()
    file(COPY "${CMAKE_CURRENT_LIST_DIR}/packed.cpp" "${CMAKE_CURRENT_LIST_DIR}/packed.h"
      DESTINATION "${LLAMA_CPP}/ggml/src/ggml-cpu")
    foreach(FILE guard.cpp guard.h regex.cpp regex.h)
      configure_file("${CMAKE_CURRENT_LIST_DIR}/${FILE}" "${LLAMA_CPP}/src/afterword-${FILE}" COPYONLY)
    endforeach()
  endif()
  # Hundreds of small files that include the same large headers: together they compile faster.
  cmake_language(DEFER CALL set_target_properties llama PROPERTIES
    UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 12)
endif()
