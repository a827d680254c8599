# Installs the C++ client, its headers and a CMake package, so that other projects can say
#
#   find_package(hookline REQUIRED)
#   target_link_libraries(program PRIVATE hookline::client)     # C++: #include "client/cpp/client.h"
#   target_link_libraries(program PRIVATE hookline::client_c)   # C: #include "client/cpp/c_api.h"
#
# Everything belongs to the component `client`, which `cmake --install BUILD --component client` installs alone.
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)

# Headers keep their paths in the repository, below a folder of their own, so that our `client/` and `server/` do not
# collide with those of another project in the prefix.
set(HOOKLINE_INSTALL_INCLUDE ${CMAKE_INSTALL_INCLUDEDIR}/hookline)
set(HOOKLINE_INSTALL_PACKAGE ${CMAKE_INSTALL_LIBDIR}/cmake/hookline)

function(hookline_install_headers)
  foreach(header ${ARGN})
    get_filename_component(folder ${header} DIRECTORY)
    install(FILES ${CMAKE_SOURCE_DIR}/${header} DESTINATION ${HOOKLINE_INSTALL_INCLUDE}/${folder} COMPONENT client)
  endforeach()
endfunction()

# These are the client's headers and those that they include; tests/install fails if one is missing.
hookline_install_headers(
  client/cpp/batched_capture.h client/cpp/c_api.h client/cpp/capture_call.h client/cpp/capture_response.h
  client/cpp/client.h client/cpp/offered_memory.h client/cpp/pause_watch.h client/cpp/resumable_capture.h
  client/cpp/row_layout.h client/cpp/rpc_status.h client/cpp/security.h
  server/base/dtype.h server/base/half.h server/base/row_layout.h server/base/row_values.h server/base/status.h server/base/steady.h)
install(DIRECTORY ${CMAKE_BINARY_DIR}/proto/ DESTINATION ${HOOKLINE_INSTALL_INCLUDE} COMPONENT client
        FILES_MATCHING PATTERN "*.pb.h" PATTERN "CMakeFiles" EXCLUDE)

set_target_properties(hookline_base PROPERTIES EXPORT_NAME base)
set_target_properties(hookline_proto PROPERTIES EXPORT_NAME proto)
set_target_properties(hookline_client PROPERTIES EXPORT_NAME client)
set_target_properties(hookline_client_c PROPERTIES EXPORT_NAME client_c)
install(TARGETS hookline_base hookline_proto hookline_client hookline_client_c EXPORT hookline
        ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT client
        LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT client
        INCLUDES DESTINATION ${HOOKLINE_INSTALL_INCLUDE})
install(EXPORT hookline NAMESPACE hookline:: FILE hookline-targets.cmake DESTINATION ${HOOKLINE_INSTALL_PACKAGE}
        COMPONENT client)
# Before version 1.0 a minor version may change the interface.
write_basic_package_version_file(${CMAKE_BINARY_DIR}/hookline-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_SOURCE_DIR}/cmake/hookline-config.cmake ${CMAKE_BINARY_DIR}/hookline-config-version.cmake
        DESTINATION ${HOOKLINE_INSTALL_PACKAGE} COMPONENT client)
