# Included in place of afterword.cmake where the backend of a GPU is built beside our CPU kernels.
include("${CMAKE_CURRENT_LIST_DIR}/afterword.cmake")
if(CMAKE_CURRENT_SOURCE_DIR STREQUAL CMAKE_SOURCE_DIR)
  set(APPLIED "${AFTERWORD_LLAMA_CPP}/afterword-gpu-patches")
  if(NOT EXISTS "${APPLIED}")
    file(GLOB PATCHES "${AFTERWORD_NATIVE}/gpu/*.patch")
    foreach(FILE ${PATCHES})
      execute_process(
        COMMAND "${PATCH}" -p1 --fuzz=0 --input "${FILE}"
        WORKING_DIRECTORY "${AFTERWORD_LLAMA_CPP}" COMMAND_ERROR_IS_FATAL ANY)
    endforeach()
    file(TOUCH "${APPLIED}")
  endif()

  # Called when the targets exist: a name of our own, found beside the other libraries.
  function(afterword_name_backend)
    set(TOOLKIT "")
    if(TARGET ggml-cuda)
      # CMake leaves out what nvcc searches by itself; the loader finds the toolkit's libraries there, wherever it is.
      get_directory_property(TOOLKIT DIRECTORY "${AFTERWORD_LLAMA_CPP}/ggml/src/ggml-cuda"
        DEFINITION CUDAToolkit_LIBRARY_DIR)
    endif()
    foreach(TARGET ggml-vulkan ggml-cuda ggml-metal ggml-hip)
      if(TARGET ${TARGET})
        set_property(TARGET ${TARGET} PROPERTY VERSION)
        set_property(TARGET ${TARGET} PROPERTY SOVERSION)
        set_target_properties(${TARGET} PROPERTIES PREFIX "${CMAKE_SHARED_LIBRARY_PREFIX}afterword-"
          INSTALL_RPATH "${AFTERWORD_ORIGIN};${TOOLKIT}" BUILD_WITH_INSTALL_RPATH ON)
      endif()
    endforeach()
  endfunction()
  cmake_language(DEFER CALL afterword_name_backend)
endif()
