# The installed C++ client: `hookline::client`, and `hookline::client_c` for its C interface (cmake/Install.cmake).
include(CMakeFindDependencyMacro)
find_dependency(Threads)
find_dependency(OpenSSL)
find_dependency(absl)
find_dependency(Protobuf)

# gRPC has a CMake package or only pkg-config's, as in cmake/Grpc.cmake. The client may have been built with the
# other one.
if(NOT TARGET hookline::grpc_client)
  add_library(hookline::grpc_client INTERFACE IMPORTED)
  find_package(gRPC CONFIG QUIET)
  if(gRPC_FOUND)
    target_link_libraries(hookline::grpc_client INTERFACE gRPC::grpc++ protobuf::libprotobuf)
  else()
    find_dependency(PkgConfig)
    pkg_check_modules(HOOKLINE_GRPCPP REQUIRED QUIET IMPORTED_TARGET grpc++)
    target_link_libraries(hookline::grpc_client INTERFACE PkgConfig::HOOKLINE_GRPCPP protobuf::libprotobuf)
  endif()
endif()

include(${CMAKE_CURRENT_LIST_DIR}/hookline-targets.cmake)
