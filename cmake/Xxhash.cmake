# `hookline::xxhash`.
find_package(PkgConfig REQUIRED)
pkg_check_modules(XXHASH REQUIRED IMPORTED_TARGET libxxhash)
add_library(hookline_xxhash INTERFACE)
target_link_libraries(hookline_xxhash INTERFACE PkgConfig::XXHASH)
add_library(hookline::xxhash ALIAS hookline_xxhash)
