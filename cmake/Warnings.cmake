# `hookline_warnings`: the warnings with which all of our targets compile. Generated code does not link it.
add_library(hookline_warnings INTERFACE)
target_compile_options(hookline_warnings INTERFACE -Wall -Wextra -Werror -Wnon-virtual-dtor -Wpedantic)
if(HOOKLINE_SANITIZE)
  add_compile_options(-fsanitize=${HOOKLINE_SANITIZE} -fno-omit-frame-pointer)
  # AddressSanitizer reports a read through a null pointer by itself. Checks of every pointer before each use, and of
  # the type and size of what it points to, would take a third of the compile time.
  add_compile_options(-fno-sanitize=null,vptr,object-size)
  add_link_options(-fsanitize=${HOOKLINE_SANITIZE})
endif()

# hookline_library(NAME SOURCES file... DEPS target...): a static library of this folder, whose headers are included
# from the repository's root. hookline_program: the same for a program.
function(hookline_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  target_include_directories(${name} PUBLIC $<BUILD_INTERFACE:${CMAKE_SOURCE_DIR}>)
  target_link_libraries(${name} PUBLIC ${ARG_DEPS} PRIVATE $<BUILD_INTERFACE:hookline_warnings>)
endfunction()

function(hookline_program name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_include_directories(${name} PRIVATE ${CMAKE_SOURCE_DIR})
  target_link_libraries(${name} PRIVATE ${ARG_DEPS} hookline_warnings)
endfunction()
