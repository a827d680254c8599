# `hookline::torch`: LibTorch, from the distribution or from the torch that is installed in HOOKLINE_TORCH_PYTHON.
#
# A wheel's own TorchConfig.cmake demands the CUDA toolkit, which Hookline does not need, so this file defines the
# target from the wheel's folders. `hookline_torch_pch` holds the precompiled header that all targets with
# LibTorch share.
add_library(hookline_torch INTERFACE)
add_library(hookline::torch ALIAS hookline_torch)

if(HOOKLINE_TORCH_PYTHON)
  execute_process(
    COMMAND ${HOOKLINE_TORCH_PYTHON} -c
            "import os, torch; print(os.path.dirname(torch.__file__), torch.__version__, int(torch.compiled_with_cxx11_abi()), sep=';')"
    OUTPUT_VARIABLE torch_facts OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  list(GET torch_facts 0 torch_dir)
  list(GET torch_facts 1 torch_version)
  list(GET torch_facts 2 torch_cxx11_abi)
  if(NOT torch_cxx11_abi)
    message(FATAL_ERROR "torch ${torch_version} in ${HOOKLINE_TORCH_PYTHON} is built with the old C++ ABI; "
                        "take a release from 2.6 on")
  endif()
  # A wheel has a newer fmt than the one with which the distribution's spdlog was built; see hookline_use_torch.
  find_path(HOOKLINE_FMT_INCLUDE fmt/core.h REQUIRED)
  file(MAKE_DIRECTORY ${CMAKE_BINARY_DIR}/fmt)
  file(CREATE_LINK ${HOOKLINE_FMT_INCLUDE}/fmt ${CMAKE_BINARY_DIR}/fmt/fmt SYMBOLIC)
  target_include_directories(hookline_torch SYSTEM INTERFACE ${torch_dir}/include
                                                             ${torch_dir}/include/torch/csrc/api/include)
  # The headers of current wheels demand C++20; targets that do not include them stay with C++17.
  target_compile_features(hookline_torch INTERFACE cxx_std_20)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # GCC 12 warns about its own std::string in C++20 (https://gcc.gnu.org/bugzilla/show_bug.cgi?id=105651).
    target_compile_options(hookline_torch INTERFACE -Wno-restrict)
  endif()
  # The libraries that were installed with a CUDA wheel lie beside it, on no default path.
  file(GLOB torch_run_path LIST_DIRECTORIES true ${torch_dir}/../nvidia/*/lib)
  list(PREPEND torch_run_path ${torch_dir}/lib)
  # Kernels register themselves when their library is loaded, so the linker must keep libraries that seem unused.
  target_link_options(hookline_torch INTERFACE -Wl,--no-as-needed)
  # A wheel's libtorch.so exports parts of std::filesystem, some of which crash, so the real library comes first.
  target_link_libraries(hookline_torch INTERFACE stdc++)
  foreach(library torch torch_cpu c10 torch_cuda c10_cuda)
    if(EXISTS ${torch_dir}/lib/lib${library}.so)
      target_link_libraries(hookline_torch INTERFACE ${torch_dir}/lib/lib${library}.so)
    endif()
  endforeach()
  foreach(folder ${torch_run_path})
    target_link_options(hookline_torch INTERFACE -Wl,-rpath,${folder} -Wl,-rpath-link,${folder})
  endforeach()
  # CUDA's profiling interface, for tests/gpu/trace. Its headers need some headers of CUDA's compiler, which
  # Triton brings.
  file(GLOB HOOKLINE_CUPTI_LIBRARY ${torch_dir}/../nvidia/*/lib/libcupti.so.*)
  file(GLOB HOOKLINE_CUPTI_INCLUDE ${torch_dir}/../nvidia/cu*/include)
  list(APPEND HOOKLINE_CUPTI_INCLUDE ${torch_dir}/../triton/backends/nvidia/include)
  message(STATUS "LibTorch ${torch_version} from ${torch_dir}")
else()
  find_path(HOOKLINE_TORCH_INCLUDE ATen/ATen.h REQUIRED)
  find_library(HOOKLINE_TORCH_LIBRARY torch REQUIRED)
  find_library(HOOKLINE_TORCH_CPU_LIBRARY torch_cpu REQUIRED)
  find_library(HOOKLINE_C10_LIBRARY c10 REQUIRED)
  target_include_directories(hookline_torch SYSTEM INTERFACE ${HOOKLINE_TORCH_INCLUDE}
                                                             ${HOOKLINE_TORCH_INCLUDE}/torch/csrc/api/include)
  target_link_libraries(hookline_torch INTERFACE ${HOOKLINE_TORCH_LIBRARY} ${HOOKLINE_TORCH_CPU_LIBRARY}
                                                 ${HOOKLINE_C10_LIBRARY})
  message(STATUS "LibTorch of the distribution: ${HOOKLINE_TORCH_LIBRARY}")
endif()

file(CONFIGURE OUTPUT ${CMAKE_BINARY_DIR}/torch_pch.cc CONTENT "")
add_library(hookline_torch_pch OBJECT ${CMAKE_BINARY_DIR}/torch_pch.cc)
target_link_libraries(hookline_torch_pch PUBLIC hookline::torch PRIVATE hookline_warnings)
target_compile_options(hookline_torch_pch PRIVATE -Wno-pedantic)
target_precompile_headers(hookline_torch_pch PRIVATE <ATen/ATen.h>)

# Compiles `target` with LibTorch and the shared precompiled header. Targets that link `target` link LibTorch too, but
# do not see its headers, because a wheel's include an old copy of Protobuf's. WITH_SPDLOG: spdlog's fmt comes before
# a wheel's.
function(hookline_use_torch target)
  cmake_parse_arguments(ARG "WITH_SPDLOG" "" "" ${ARGN})
  if(ARG_WITH_SPDLOG AND HOOKLINE_TORCH_PYTHON)
    target_include_directories(${target} SYSTEM BEFORE PRIVATE ${CMAKE_BINARY_DIR}/fmt)
  endif()
  target_link_libraries(${target} PRIVATE hookline::torch)
  target_precompile_headers(${target} REUSE_FROM hookline_torch_pch)
endfunction()
