# Emulated modules: kernel files (.cu) built by the C++ compiler for the emulator of csrc/emulator, with
# their bindings, as a Python module. For tests only, x86-64 only, never installed.
#
#   brasa_add_emulated_module(<name> [RACE] SOURCES <file.cu|file.cpp>...)
#
# RACE instruments the kernel files, and only those, for the emulator's race check and access lint. All sources see
# BRASA_FOR_CUDA and BRASA_EMULATED, the others also BRASA_MODULE=<name>. The module has bind_emulator().

set(_brasa_csrc "${CMAKE_CURRENT_LIST_DIR}/../csrc")
set(_brasa_emulator_warnings -Wall -Wextra -Werror -Wno-psabi -Wno-unknown-pragmas
                             -Wno-missing-field-initializers)

# What all targets here have in common. Error messages name places from the line tables (-g1); in those of
# DWARF 5, addr2line 2.40 mixes up a file and the one that includes it.
function(_brasa_configure_emulated target)
  target_include_directories(${target} PRIVATE "${_brasa_csrc}")
  target_compile_features(${target} PRIVATE cxx_std_20)
  target_compile_definitions(${target} PRIVATE BRASA_FOR_CUDA BRASA_EMULATED)
  target_compile_options(${target} PRIVATE -O2 -g1 -gdwarf-4 ${_brasa_emulator_warnings})
  set_target_properties(
    ${target}
    PROPERTIES POSITION_INDEPENDENT_CODE ON
               CXX_VISIBILITY_PRESET hidden
               VISIBILITY_INLINES_HIDDEN ON
               CXX_EXTENSIONS OFF
               EXCLUDE_FROM_ALL ON)
endfunction()

# The runtime, compiled once for all modules.
function(_brasa_add_emulator_runtime)
  if(TARGET brasa_emulator)
    return()
  endif()
  if(NOT CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
    message(FATAL_ERROR "The emulator's fibers are written for x86-64, not ${CMAKE_SYSTEM_PROCESSOR}")
  endif()
  file(GLOB sources CONFIGURE_DEPENDS "${_brasa_csrc}/emulator/*.cpp")
  list(FILTER sources EXCLUDE REGEX "/instrumentation\\.cpp$")
  add_library(brasa_emulator OBJECT ${sources})
  add_library(brasa_emulator_race OBJECT "${_brasa_csrc}/emulator/instrumentation.cpp")
  _brasa_configure_emulated(brasa_emulator)
  _brasa_configure_emulated(brasa_emulator_race)
  target_link_libraries(brasa_emulator PRIVATE pybind11::module)
endfunction()

# One C++ file per kernel file that includes it: a source's language is a property of the whole folder, and
# the same .cu files may be compiled by nvcc for another target.
function(_brasa_add_kernels target)
  set(wrappers)
  foreach(source IN LISTS ARGN)
    cmake_path(ABSOLUTE_PATH source NORMALIZE)
    cmake_path(RELATIVE_PATH source BASE_DIRECTORY "${PROJECT_SOURCE_DIR}" OUTPUT_VARIABLE relative)
    set(wrapper "${CMAKE_CURRENT_BINARY_DIR}/emulated/${target}/${relative}.cpp")
    file(CONFIGURE OUTPUT "${wrapper}" CONTENT "#include \"${source}\"\n")
    list(APPEND wrappers "${wrapper}")
  endforeach()
  add_library(${target} OBJECT ${wrappers})
  _brasa_configure_emulated(${target})
endfunction()

function(brasa_add_emulated_module name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "RACE" "" "SOURCES")
  if(arg_UNPARSED_ARGUMENTS OR NOT arg_SOURCES)
    message(FATAL_ERROR "brasa_add_emulated_module(<name> [RACE] SOURCES <files>...)")
  endif()
  _brasa_add_emulator_runtime()
  set(host_sources ${arg_SOURCES})
  list(FILTER host_sources EXCLUDE REGEX "\\.cu$")
  set(kernel_sources ${arg_SOURCES})
  list(FILTER kernel_sources INCLUDE REGEX "\\.cu$")

  _brasa_add_kernels(${name}_kernels ${kernel_sources})
  # The kernels last: of a library template in several objects the linker takes the first, and the runtime is
  # to have one without instrumentation.
  set(objects $<TARGET_OBJECTS:brasa_emulator>)
  if(arg_RACE)
    # A pack of 16 bytes is to stay one access: the lint counts instructions.
    target_compile_options(${name}_kernels PRIVATE -O1 -fno-tree-sra -fsanitize=thread
                                                   "SHELL:--param tsan-instrument-func-entry-exit=0")
    list(APPEND objects $<TARGET_OBJECTS:brasa_emulator_race>)
  endif()
  list(APPEND objects $<TARGET_OBJECTS:${name}_kernels>)

  pybind11_add_module(${name} MODULE NO_EXTRAS ${host_sources} ${objects})
  _brasa_configure_emulated(${name})
  target_compile_definitions(${name} PRIVATE BRASA_MODULE=${name})
  target_link_libraries(${name} PRIVATE ${CMAKE_DL_LIBS})
endfunction()
