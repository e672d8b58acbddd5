//! The installed tree that the tests of this target share, and fresh directories for its users.

use crate::tools::{all_here, root, succeed};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// What the program examples/c/minimal.c says.
pub const RIGHT: &str = "all bytes are right\n";

/// A tree that kvlink was installed into.
pub struct Prefix {
    pub path: PathBuf,
}

/// The installed tree; `None`, said as a skip, if a program that makes it is missing.
pub fn prefix() -> Option<&'static Prefix> {
    static PREFIX: OnceLock<Option<Prefix>> = OnceLock::new();
    let made = PREFIX.get_or_init(|| all_here(&["cmake", "make", "cc"]).then(install));
    made.as_ref()
}

fn install() -> Prefix {
    let prefix = Prefix { path: fresh("prefix") };
    let build = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cmake");
    let mut cmake = Command::new("cmake");
    cmake
        .arg("-S")
        .arg(root())
        .arg("-B")
        .arg(&build)
        .args(["-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_INSTALL_LIBDIR=lib"]);
    cmake.arg(format!("-DKVLINK_CARGO_TARGET_DIR={}", cargo_target().display()));
    succeed(clean(&mut cmake));
    succeed(clean(Command::new("cmake").arg("--build").arg(&build)));
    succeed(Command::new("cmake").arg("--install").arg(&build).arg("--prefix").arg(&prefix.path));
    prefix
}

/// Where CMake's cargo builds, so that later builds find it done.
pub fn cargo_target() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("../cmake/cargo")
}

/// An environment in which nothing but what a test says chooses compilers, flags and libraries.
pub fn clean(command: &mut Command) -> &mut Command {
    for name in
        ["CFLAGS", "LDFLAGS", "RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "LD_LIBRARY_PATH", "LIBRARY_PATH", "CPATH"]
    {
        command.env_remove(name);
    }
    for name in ["PKG_CONFIG_PATH", "PKG_CONFIG_LIBDIR", "PKG_CONFIG_SYSROOT_DIR", "CMAKE_PREFIX_PATH", "DESTDIR"] {
        command.env_remove(name);
    }
    command
}

/// A new empty directory outside the source tree; all of them go when the tests end.
pub fn fresh(name: &str) -> PathBuf {
    static PLACE: OnceLock<PathBuf> = OnceLock::new();
    fn place() -> PathBuf {
        std::env::temp_dir().join(format!("kvlink-installed-{}", std::process::id()))
    }
    extern "C" fn remove() {
        let _ = fs::remove_dir_all(place());
    }
    let place = PLACE.get_or_init(|| {
        // SAFETY: the function is of the right type and lives as long as the program.
        assert_eq!(unsafe { libc::atexit(remove) }, 0);
        place()
    });
    let dir = place.join(name);
    fs::create_dir_all(place).unwrap();
    fs::create_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    dir
}

/// Puts files of the source tree into a directory, as a user who copied them would have them.
pub fn copy(dir: &Path, files: &[&str]) {
    for file in files {
        let from = root().join(file);
        fs::copy(&from, dir.join(from.file_name().unwrap())).unwrap_or_else(|e| panic!("{file}: {e}"));
    }
}

impl Prefix {
    pub fn lib(&self) -> PathBuf {
        self.path.join("lib")
    }

    /// The shared library, by the name that the linker looks for.
    pub fn so(&self) -> PathBuf {
        self.lib().join("libkvlink.so")
    }

    /// What pkg-config answers.
    pub fn pkg_config(&self, args: &[&str]) -> Vec<String> {
        let mut command = Command::new("pkg-config");
        clean(&mut command).env("PKG_CONFIG_PATH", self.lib().join("pkgconfig"));
        succeed(command.args(args).arg("kvlink")).split_whitespace().map(ToString::to_string).collect()
    }

    /// A program that finds the shared library in this prefix.
    pub fn program(&self, path: &Path) -> Command {
        let mut command = Command::new(path);
        clean(&mut command).env("LD_LIBRARY_PATH", self.lib());
        command
    }
}
