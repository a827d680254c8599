# Debian packages, one for each component: `cpack --config build/release/CPackConfig.cmake -B build/packages`.
#
#   hookline-server          the server, its systemd unit, environment file, user and directories
#   hookline                 the command-line client
#   libhookline-client-dev   the C++ and C client: headers, libraries and CMake package (cmake/Install.cmake)
#
# deploy/test-packages builds, installs, upgrades and purges them in a clean root.
install(TARGETS hookline-server RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} COMPONENT server)
install(FILES ${CMAKE_SOURCE_DIR}/deploy/hookline-server.service DESTINATION lib/systemd/system COMPONENT server)
# The path is absolute, because configuration is in the same place whatever the prefix is.
install(FILES ${CMAKE_SOURCE_DIR}/deploy/hookline-server.env DESTINATION /etc/hookline COMPONENT server)
install(TARGETS hookline RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} COMPONENT cli)

set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME hookline)
set(CPACK_PACKAGE_VENDOR "Hookline")
set(CPACK_PACKAGE_CONTACT "The Hookline developers <hookline@localhost>")
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_STRIP_FILES ON)
set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_COMPONENTS_GROUPING ONE_PER_GROUP)
# The Python package is the component `python`, which pyproject.toml builds.
set(CPACK_COMPONENTS_ALL server cli client)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_CONTROL_STRICT_PERMISSION ON)

set(CPACK_DEBIAN_SERVER_PACKAGE_NAME hookline-server)
set(CPACK_DEBIAN_SERVER_PACKAGE_SECTION science)
set(CPACK_COMPONENT_SERVER_DESCRIPTION
    "server of language models' activations\n Keeps language models on a device and streams the activations at the hook points that clients name.")
# LibTorch depends only on the reference BLAS, which is tens of times slower; adduser makes the server's user.
set(CPACK_DEBIAN_SERVER_PACKAGE_DEPENDS "libopenblas0-openmp | libopenblas0-pthread | libmkl-rt, adduser")
set(CPACK_DEBIAN_SERVER_PACKAGE_CONTROL_EXTRA
    ${CMAKE_SOURCE_DIR}/deploy/packages/server/conffiles ${CMAKE_SOURCE_DIR}/deploy/packages/server/postinst
    ${CMAKE_SOURCE_DIR}/deploy/packages/server/prerm ${CMAKE_SOURCE_DIR}/deploy/packages/server/postrm)

set(CPACK_DEBIAN_CLI_PACKAGE_NAME hookline)
set(CPACK_DEBIAN_CLI_PACKAGE_SECTION science)
set(CPACK_COMPONENT_CLI_DESCRIPTION
    "command-line client of Hookline\n Lists models and hook points, and captures, reads, verifies and exports activations.")

set(CPACK_DEBIAN_CLIENT_PACKAGE_NAME libhookline-client-dev)
set(CPACK_DEBIAN_CLIENT_PACKAGE_SECTION libdevel)
set(CPACK_COMPONENT_CLIENT_DESCRIPTION
    "C++ and C client of Hookline, development files\n Headers, libraries and a CMake package: find_package(hookline) gives hookline::client and hookline::client_c.")
# The headers include these libraries' headers, and the CMake package looks for these packages; Debian's package of gRPC
# also looks for its compiler.
set(CPACK_DEBIAN_CLIENT_PACKAGE_DEPENDS "libgrpc++-dev, libprotobuf-dev, libabsl-dev, libssl-dev, protobuf-compiler-grpc, pkg-config")
include(CPack)
