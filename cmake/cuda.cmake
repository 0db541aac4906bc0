# _cuda: nvcc from PATH or from NVIDIA's pip packages; the static runtime, no cuBLAS, no cuDNN.
#
# BRASA_CUDA=on builds all released targets, auto the GPUs of this machine (else sm_80 and sm_90a) and
# nothing where nvcc is missing. Machine code runs within its major version only, so each generation is
# a target; PTX of 120 covers what comes later. PTX of 80 as well would be 5.4 MB more, for Jetson Thor (11.0)
# alone, and there the host would ask its kernels for clusters that they have not.

if(NOT CMAKE_CUDA_COMPILER)
  execute_process(COMMAND ${Python_EXECUTABLE} -c
      "import nvidia, pathlib; print(*(p / 'cu13' / 'bin' / 'nvcc' for p in map(pathlib.Path, nvidia.__path__) if (p / 'cu13/bin/nvcc').exists()))"
    OUTPUT_VARIABLE pip_nvcc OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  find_program(nvcc nvcc HINTS /usr/local/cuda/bin)
  if(nvcc)
    set(CMAKE_CUDA_COMPILER ${nvcc})
  elseif(pip_nvcc)
    set(CMAKE_CUDA_COMPILER ${pip_nvcc})
    cmake_path(GET pip_nvcc PARENT_PATH pip_bin)
    # nvcc looks for libraries in lib64, the pip packages put them into lib.
    set(CMAKE_CUDA_FLAGS_INIT "-L${pip_bin}/../lib")
  elseif(BRASA_CUDA STREQUAL "auto")
    message(STATUS "brasa: no nvcc, _cuda is not built")
    return()
  else()
    message(FATAL_ERROR "BRASA_CUDA=on, but no nvcc in PATH or among the pip packages "
      "(nvidia-cuda-nvcc nvidia-cuda-crt nvidia-nvvm nvidia-cuda-runtime nvidia-cuda-cccl)")
  endif()
endif()

if(BRASA_CUDA_ARCHS)
  set(targets ${BRASA_CUDA_ARCHS})
elseif(BRASA_CUDA STREQUAL "auto")
  execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
    OUTPUT_VARIABLE capabilities OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
  set(targets 80-real 90a-real)
  if(NOT failed AND capabilities)
    string(REPLACE "." "" capabilities "${capabilities}")
    string(REPLACE "\n" ";" capabilities "${capabilities}")
    list(REMOVE_DUPLICATES capabilities)
    list(TRANSFORM capabilities REPLACE "^90$" "90a")
    list(TRANSFORM capabilities APPEND "-real" OUTPUT_VARIABLE targets)
  endif()
else()
  set(targets 80-real 90a-real 100-real 120)
endif()
set(CMAKE_CUDA_ARCHITECTURES ${targets})
enable_language(CUDA)
# CMake 3.25 does not know how nvcc 13 is asked for C++20.
foreach(option CMAKE_CUDA20_STANDARD_COMPILE_OPTION CMAKE_CUDA20_EXTENSION_COMPILE_OPTION)
  if(NOT ${option})
    set(${option} -std=c++20)
  endif()
endforeach()

# Bindings have -O2 as those of _cpu: -O3 is a tenth larger, -Os a third smaller, but calls took 0.1 to 0.2 us more.
# --gc-sections leaves 23 KB of the CUDA runtime out.
function(brasa_add_cuda_module name)
  pybind11_add_module(${name} MODULE NO_EXTRAS ${ARGN})
  target_include_directories(${name} PRIVATE csrc)
  target_compile_definitions(${name} PRIVATE BRASA_MODULE=${name} BRASA_FOR_CUDA)
  target_compile_options(${name} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:${warnings} -O2>
    $<$<COMPILE_LANGUAGE:CUDA>:--compress-mode=size>)
  target_link_options(${name} PRIVATE $<$<CONFIG:Release>:-s> LINKER:--gc-sections)
  set_target_properties(${name} PROPERTIES CUDA_RUNTIME_LIBRARY Static CUDA_VISIBILITY_PRESET hidden)
endfunction()

brasa_add_cuda_module(_cuda csrc/bind/module.cpp csrc/bind/device.cpp ${binding_sources} ${cuda_sources})
install(TARGETS _cuda DESTINATION brasa)

# The kernels of the emulator's tests, for what a GPU makes of them (tools/gpu_check.py golden).
file(GLOB selftest_sources CONFIGURE_DEPENDS tests/emulator/*.cu tests/emulator/selftest_bind.cpp)
if(selftest_sources)
  brasa_add_cuda_module(_cuda_selftest EXCLUDE_FROM_ALL ${selftest_sources} csrc/core/driver.cu)
endif()
