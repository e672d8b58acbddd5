# What `cmake --install` puts where; every path inside what is installed is relative to the file that names it.

include(CMakePackageConfigHelpers)
set(kvlink_package "${CMAKE_INSTALL_LIBDIR}/cmake/kvlink")

install(TARGETS kvlink kvlink_static EXPORT kvlink)
install(DIRECTORY include/ DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" FILES_MATCHING PATTERN "*.h" PATTERN "*.hpp")
install(FILES LICENSE DESTINATION "${CMAKE_INSTALL_DOCDIR}")
foreach(section 3 7)
  install(DIRECTORY docs/man/ DESTINATION "${CMAKE_INSTALL_MANDIR}/man${section}" FILES_MATCHING PATTERN "*.${section}")
endforeach()

# pkg-config: the prefix is found from where the file lies.
cmake_path(ABSOLUTE_PATH CMAKE_INSTALL_LIBDIR BASE_DIRECTORY "${CMAKE_INSTALL_PREFIX}" OUTPUT_VARIABLE libdir)
cmake_path(RELATIVE_PATH CMAKE_INSTALL_PREFIX BASE_DIRECTORY "${libdir}/pkgconfig" OUTPUT_VARIABLE kvlink_up)
cmake_path(ABSOLUTE_PATH CMAKE_INSTALL_INCLUDEDIR BASE_DIRECTORY "\${prefix}" OUTPUT_VARIABLE kvlink_pc_includedir)
cmake_path(ABSOLUTE_PATH CMAKE_INSTALL_LIBDIR BASE_DIRECTORY "\${prefix}" OUTPUT_VARIABLE kvlink_pc_libdir)
list(JOIN kvlink_private_libraries " " kvlink_pc_private)
configure_file(cmake/kvlink.pc.in kvlink.pc @ONLY)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/kvlink.pc" DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig")

# Before 1.0 a minor version may change what compiles, so 0.1 is not asked for where 0.2 is.
if(PROJECT_VERSION_MAJOR EQUAL 0)
  set(compatibility SameMinorVersion)
else()
  set(compatibility SameMajorVersion)
endif()
write_basic_package_version_file(kvlink-config-version.cmake COMPATIBILITY ${compatibility})
configure_package_config_file(cmake/kvlink-config.cmake.in kvlink-config.cmake INSTALL_DESTINATION "${kvlink_package}")
install(EXPORT kvlink NAMESPACE kvlink:: FILE kvlink-targets.cmake DESTINATION "${kvlink_package}")
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/kvlink-config.cmake" "${CMAKE_CURRENT_BINARY_DIR}/kvlink-config-version.cmake"
  DESTINATION "${kvlink_package}")
