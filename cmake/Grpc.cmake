# `hookline::grpc`: gRPC for C++ with server reflection, from its CMake package where there is one, else from pkg-config.
find_package(gRPC CONFIG QUIET)
add_library(hookline_grpc INTERFACE)
add_library(hookline::grpc ALIAS hookline_grpc)
if(gRPC_FOUND)
  target_link_libraries(hookline_grpc INTERFACE gRPC::grpc++_reflection gRPC::grpc++ protobuf::libprotobuf)
  set(HOOKLINE_GRPC_PLUGIN $<TARGET_FILE:gRPC::grpc_cpp_plugin>)
else()
  find_package(PkgConfig REQUIRED)
  pkg_check_modules(GRPCPP REQUIRED IMPORTED_TARGET grpc++)
  # The reflection service registers itself when the program starts, so the linker must not drop it as unused.
  find_library(GRPCPP_REFLECTION grpc++_reflection REQUIRED)
  target_link_libraries(hookline_grpc INTERFACE -Wl,--no-as-needed ${GRPCPP_REFLECTION} -Wl,--as-needed PkgConfig::GRPCPP
                                                protobuf::libprotobuf)
  find_program(HOOKLINE_GRPC_PLUGIN grpc_cpp_plugin REQUIRED)
endif()
