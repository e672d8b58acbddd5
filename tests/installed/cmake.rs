//! CMake projects: with the installed package, and with the sources.

use crate::files::tree;
use crate::prefix::{Prefix, RIGHT, cargo_target, clean, copy, fresh, prefix};
use crate::tools::{output, root, succeed};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A project with the minimal example as a program for each of these targets.
fn project(name: &str, kvlink: &str, targets: &[&str]) -> PathBuf {
    let dir = fresh(name);
    copy(&dir, &["examples/c/minimal.c"]);
    let mut text = format!("cmake_minimum_required(VERSION 3.21)\nproject(consumer LANGUAGES C)\n{kvlink}\n");
    for target in targets {
        text.push_str(&format!("add_executable({target}_user minimal.c)\n"));
        text.push_str(&format!("target_link_libraries({target}_user PRIVATE kvlink::{target})\n"));
        text.push_str(&format!("install(TARGETS {target}_user)\n"));
    }
    fs::write(dir.join("CMakeLists.txt"), text).unwrap();
    dir
}

fn configure(project: &Path, args: &[String]) -> Command {
    let mut cmake = Command::new("cmake");
    clean(&mut cmake).arg("-S").arg(project).arg("-B").arg(project.join("build")).args(args);
    cmake
}

fn build(project: &Path) {
    succeed(clean(Command::new("cmake").arg("--build").arg(project.join("build"))));
}

fn with(prefix: &Prefix) -> [String; 1] {
    [format!("-DCMAKE_PREFIX_PATH={}", prefix.path.display())]
}

/// Both targets of the package, in the given prefix.
pub fn both_targets(prefix: &Prefix, name: &str) {
    let minor = concat!(env!("CARGO_PKG_VERSION_MAJOR"), ".", env!("CARGO_PKG_VERSION_MINOR"));
    let find = format!("find_package(kvlink {minor} CONFIG REQUIRED)");
    let dir = project(name, &find, &["kvlink", "static"]);
    succeed(&mut configure(&dir, &with(prefix)));
    build(&dir);
    for (program, shared) in [("kvlink_user", true), ("static_user", false)] {
        let program = dir.join("build").join(program);
        let text = succeed(Command::new("readelf").arg("-dW").arg(&program));
        assert_eq!(text.contains("[libkvlink.so.0]"), shared);
        assert_eq!(succeed(clean(&mut Command::new(program))), RIGHT);
    }
}

#[test]
fn find_package_gives_both_targets() {
    let Some(prefix) = prefix() else { return };
    both_targets(prefix, "cmake-find");
}

#[test]
fn find_package_refuses_other_versions() {
    let Some(prefix) = prefix() else { return };
    let (major, minor): (u32, u32) =
        (env!("CARGO_PKG_VERSION_MAJOR").parse().unwrap(), env!("CARGO_PKG_VERSION_MINOR").parse().unwrap());
    let mut others = vec![format!("{major}.{}", minor + 1), format!("{}.0", major + 1)];
    others.extend((major == 0 && minor > 0).then(|| format!("0.{}", minor - 1)));
    for other in others {
        let dir =
            project(&format!("cmake-{other}"), &format!("find_package(kvlink {other} CONFIG REQUIRED)"), &["kvlink"]);
        let output = output(&mut configure(&dir, &with(prefix)));
        let text = String::from_utf8_lossy(&output.stderr);
        let considered = concat!("kvlink-config.cmake, version: ", env!("CARGO_PKG_VERSION"));
        assert!(!output.status.success() && text.contains(considered), "{other}: {text}");
    }
}

/// kvlink as a part of another project: built with it, linked with it, not installed with it.
fn from_source(name: &str, kvlink: &str, args: &[String]) {
    let dir = project(name, kvlink, &["kvlink", "static"]);
    let mut args = args.to_vec();
    args.push(format!("-DKVLINK_CARGO_TARGET_DIR={}", cargo_target().display()));
    succeed(&mut configure(&dir, &args));
    build(&dir);
    for program in ["kvlink_user", "static_user"] {
        assert_eq!(succeed(clean(&mut Command::new(dir.join("build").join(program)))), RIGHT);
    }
    let installed = dir.join("installed");
    succeed(Command::new("cmake").arg("--install").arg(dir.join("build")).arg("--prefix").arg(&installed));
    assert_eq!(tree(&installed).into_iter().collect::<Vec<_>>(), ["bin/kvlink_user", "bin/static_user"]);
}

#[test]
fn a_project_adds_the_sources_as_a_subdirectory() {
    let Some(_) = prefix() else { return };
    from_source("cmake-subdirectory", &format!("add_subdirectory({} kvlink)", root().display()), &[]);
}

#[test]
fn a_project_fetches_the_sources() {
    let Some(_) = prefix() else { return };
    let fetch = "include(FetchContent)\nFetchContent_Declare(kvlink URL https://kvlink.invalid/kvlink.tar.gz)\n\
                 FetchContent_MakeAvailable(kvlink)";
    from_source("cmake-fetch", fetch, &[format!("-DFETCHCONTENT_SOURCE_DIR_KVLINK={}", root().display())]);
}
