# The two libraries, both of one object: what the exported functions reach in the Rust archive, with every other symbol made
# local. So the static library can be linked beside other Rust libraries, and the version script only adds the versions.

file(STRINGS abi/kvlink.symbols kvlink_symbols)
list(TRANSFORM kvlink_symbols PREPEND "--undefined=" OUTPUT_VARIABLE kvlink_roots)
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS abi/kvlink.symbols Cargo.toml)

set(kvlink_map "${CMAKE_CURRENT_SOURCE_DIR}/abi/kvlink.map")
set(kvlink_object "${CMAKE_CURRENT_BINARY_DIR}/kvlink.o")
if(CMAKE_BUILD_TYPE MATCHES "^(Release|MinSizeRel)$")
  set(kvlink_strip --strip-debug)
endif()

# Groups are dissolved: a linker that sees two groups of one name drops the second, whose users then miss its local symbols.
# The standard library's bitcode is of no use once objects are joined.
add_custom_command(
  OUTPUT "${kvlink_object}"
  COMMAND "${CMAKE_LINKER}" -r --gc-sections --force-group-allocation ${kvlink_roots} "${kvlink_archive}"
          -o "${kvlink_object}"
  COMMAND "${CMAKE_OBJCOPY}" --remove-section=.llvmbc --remove-section=.llvmcmd
          "--keep-global-symbols=${CMAKE_CURRENT_SOURCE_DIR}/abi/kvlink.symbols"
          ${kvlink_strip} "${kvlink_object}"
  DEPENDS "${kvlink_archive}" abi/kvlink.symbols
  COMMENT "Joining kvlink.o"
  VERBATIM)
set_source_files_properties("${kvlink_object}" PROPERTIES EXTERNAL_OBJECT TRUE GENERATED TRUE)
add_custom_target(kvlink_object DEPENDS "${kvlink_object}")

add_library(kvlink SHARED "${kvlink_object}")
set_target_properties(kvlink PROPERTIES
  VERSION ${PROJECT_VERSION}
  SOVERSION ${PROJECT_VERSION_MAJOR}
  LINK_DEPENDS "${kvlink_map}")
target_link_options(kvlink PRIVATE
  "LINKER:--version-script=${kvlink_map}" LINKER:--gc-sections LINKER:-z,defs LINKER:-z,relro LINKER:-z,now)

add_library(kvlink_static STATIC "${kvlink_object}")
set_target_properties(kvlink_static PROPERTIES OUTPUT_NAME kvlink EXPORT_NAME static)
set(kvlink_private_libraries -lpthread -ldl -lm)
target_link_libraries(kvlink PRIVATE ${kvlink_private_libraries})
target_link_libraries(kvlink_static INTERFACE ${kvlink_private_libraries})

foreach(library kvlink kvlink_static)
  add_dependencies(${library} kvlink_object)
  set_target_properties(${library} PROPERTIES LINKER_LANGUAGE C)
  target_include_directories(${library} INTERFACE
    "$<BUILD_INTERFACE:${CMAKE_CURRENT_SOURCE_DIR}/include>" "$<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>")
endforeach()
add_library(kvlink::kvlink ALIAS kvlink)
add_library(kvlink::static ALIAS kvlink_static)
