# Everything that cargo does: the Rust static archive, ${kvlink_archive}.

find_program(KVLINK_CARGO cargo HINTS ENV CARGO_HOME PATH_SUFFIXES bin PATHS "$ENV{HOME}/.cargo" REQUIRED)

set(KVLINK_CARGO_TARGET_DIR "${CMAKE_CURRENT_BINARY_DIR}/cargo" CACHE PATH "Where cargo builds; builds may share it")
if(CMAKE_BUILD_TYPE STREQUAL "Debug")
  set(kvlink_profile --profile=dev)
  set(kvlink_cargo_out "${KVLINK_CARGO_TARGET_DIR}/debug")
else()
  set(kvlink_profile --release)
  set(kvlink_cargo_out "${KVLINK_CARGO_TARGET_DIR}/release")
endif()
set(kvlink_archive "${kvlink_cargo_out}/libkvlink.a")

# The environment must not choose another place or another target.
add_custom_command(
  OUTPUT "${kvlink_archive}"
  COMMAND "${CMAKE_COMMAND}" -E env --unset=CARGO_BUILD_TARGET "CARGO_TARGET_DIR=${KVLINK_CARGO_TARGET_DIR}"
          "${KVLINK_CARGO}" rustc ${KVLINK_CARGO_FLAGS} ${kvlink_profile} --lib --crate-type staticlib
  DEPENDS Cargo.toml Cargo.lock build.rs
  DEPFILE "${kvlink_cargo_out}/libkvlink.d"
  WORKING_DIRECTORY "${CMAKE_CURRENT_SOURCE_DIR}"
  COMMENT "Building kvlink with cargo"
  USES_TERMINAL VERBATIM)
