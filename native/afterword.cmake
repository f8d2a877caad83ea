# Included by the build of llama-cpp-python right after its project() (CMAKE_PROJECT_INCLUDE). It applies the patches and
# adds the sources of this folder to the targets of ggml and llama.
if(CMAKE_CURRENT_SOURCE_DIR STREQUAL CMAKE_SOURCE_DIR)
  # The package forces its cache entry ON; a plain variable goes before it.
  set(LLAMA_BUILD_COMMON OFF)
  set(AFTERWORD_NATIVE "${CMAKE_CURRENT_LIST_DIR}")
  # In the order of their numbers.
  file(GLOB AFTERWORD_PATCHES "${AFTERWORD_NATIVE}/patches/*.patch")
  file(GLOB AFTERWORD_KERNELS "${AFTERWORD_NATIVE}/kernels/*")
  file(GLOB AFTERWORD_LIBRARY "${AFTERWORD_NATIVE}/library/*")
  file(GLOB AFTERWORD_HEADERS "${AFTERWORD_NATIVE}/include/*")

  set(DIGESTS "")
  foreach(FILE ${AFTERWORD_PATCHES} ${AFTERWORD_KERNELS} ${AFTERWORD_LIBRARY} ${AFTERWORD_HEADERS})
    file(SHA256 "${FILE}" FILE_DIGEST)
    string(APPEND DIGESTS "${FILE_DIGEST}")
  endforeach()
  string(SHA256 AFTERWORD_DIGEST "${DIGESTS}")
  string(SUBSTRING "${AFTERWORD_DIGEST}" 0 12 AFTERWORD_DIGEST)

  set(AFTERWORD_LLAMA_CPP "${CMAKE_SOURCE_DIR}/vendor/llama.cpp")
  set(APPLIED "${AFTERWORD_LLAMA_CPP}/afterword-patches")
  if(NOT EXISTS "${APPLIED}")
    find_program(PATCH patch REQUIRED)
    foreach(FILE ${AFTERWORD_PATCHES})
      execute_process(
        COMMAND "${PATCH}" -p1 --fuzz=0 --input "${FILE}"
        WORKING_DIRECTORY "${AFTERWORD_LLAMA_CPP}" COMMAND_ERROR_IS_FATAL ANY)
    endforeach()
    file(WRITE "${APPLIED}" "${AFTERWORD_DIGEST}")
  endif()

  set(AFTERWORD_ORIGIN "\$ORIGIN")
  if(APPLE)
    set(AFTERWORD_ORIGIN "@loader_path")
  endif()

  function(afterword_compile_kernels FILE)
    set_property(SOURCE "${AFTERWORD_NATIVE}/kernels/${FILE}" TARGET_DIRECTORY ggml-cpu
      APPEND PROPERTY COMPILE_OPTIONS ${ARGN})
  endfunction()

  # Called when the targets exist.
  function(afterword_add_sources)
    foreach(TARGET ggml-cpu llama)
      target_include_directories(${TARGET} PRIVATE
        "${AFTERWORD_NATIVE}/include" "${AFTERWORD_NATIVE}/kernels" "${AFTERWORD_NATIVE}/library" "${AFTERWORD_LLAMA_CPP}/include")
    endforeach()
    # Names of our own: a process may have the libraries of another llama.cpp open, too. Without versions there are no
    # links, which a wheel would store as copies. A build of ggml-cpu in a folder of its own finds ggml-base above.
    foreach(TARGET ggml-base ggml-cpu ggml llama)
      set_property(TARGET ${TARGET} PROPERTY VERSION)
      set_property(TARGET ${TARGET} PROPERTY SOVERSION)
      set_target_properties(${TARGET} PROPERTIES PREFIX "${CMAKE_SHARED_LIBRARY_PREFIX}afterword-"
        INSTALL_RPATH "${AFTERWORD_ORIGIN};${AFTERWORD_ORIGIN}/.." BUILD_WITH_INSTALL_RPATH ON)
    endforeach()
    target_sources(ggml-cpu PRIVATE ${AFTERWORD_KERNELS})
    target_sources(llama PRIVATE ${AFTERWORD_LIBRARY})
    # A file of kernels has the instructions that its processors have, whatever the rest is compiled for.
    if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$" AND NOT MSVC)
      afterword_compile_kernels(packed_avx2.cpp -march=x86-64-v3)
      afterword_compile_kernels(packed_avx512.cpp -march=x86-64-v4 -mavx512vnni)
      # Older compilers have no tiles. The file is then empty.
      include(CheckCXXCompilerFlag)
      check_cxx_compiler_flag(-mamx-int8 AFTERWORD_HAS_TILES)
      afterword_compile_kernels(packed_amx.cpp -march=x86-64-v4 -mavx512vnni
        $<$<BOOL:${AFTERWORD_HAS_TILES}>:-mamx-tile> $<$<BOOL:${AFTERWORD_HAS_TILES}>:-mamx-int8>)
    endif()
    if(NOT MSVC)
      # A product joined to a sum in one loop and not in another would round otherwise.
      afterword_compile_kernels(packed_portable.cpp -ffp-contract=off)
      # draw.cpp has none; the others compute what numpy does.
      foreach(FILE draw_fewest draw_filters draw_row draw_survivors draw_top)
        afterword_compile_kernels(${FILE}.cpp -ffp-contract=off)
      endforeach()
    endif()
    if(NOT MSVC)
      # An exception leaves a load through functions in C: see library/abort.cpp.
      target_compile_options(ggml-base PRIVATE $<$<COMPILE_LANGUAGE:C>:-fexceptions>)
    endif()
    # Hundreds of small files include the same large headers: together they compile faster. Files of ours stay apart.
    set_target_properties(llama PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 12)
    set_source_files_properties(${AFTERWORD_LIBRARY} TARGET_DIRECTORY llama PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
    # Only the file that tells the digest is compiled anew when it changes.
    set_property(
      SOURCE "${AFTERWORD_NATIVE}/library/changes.cpp" TARGET_DIRECTORY llama
      APPEND PROPERTY COMPILE_DEFINITIONS AFTERWORD_CHANGES="${AFTERWORD_DIGEST}")
  endfunction()
  cmake_language(DEFER CALL afterword_add_sources)
endif()
