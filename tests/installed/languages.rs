//! The example engines of every language, built from the installed library, in every pair: a hybrid model is read, and
//! written layer by layer, between processes, and every byte is checked by the demo's driver.

use crate::prefix::{Prefix, cargo_target, clean, copy, fresh, prefix};
use crate::tools::{all_here, root, succeed};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::Command;

/// A folder with the programs `prefill` and `decode`.
pub struct Engines {
    pub language: &'static str,
    pub dir: PathBuf,
}

fn c(prefix: &Prefix) -> Option<Engines> {
    let dir = fresh("engines-c");
    copy(&dir, &["examples/c/prefill.c", "examples/c/decode.c", "examples/c/common.c", "examples/c/common.h"]);
    for program in ["prefill", "decode"] {
        let mut cc = Command::new("cc");
        clean(&mut cc).current_dir(&dir).args(["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]);
        cc.arg(format!("{program}.c")).arg("common.c").args(prefix.pkg_config(&["--cflags", "--libs"]));
        succeed(cc.args(["-o", program]));
    }
    Some(Engines { language: "C", dir })
}

const CMAKE_PROJECT: &str = "cmake_minimum_required(VERSION 3.21)
project(engines LANGUAGES CXX)
find_package(kvlink 0.1 CONFIG REQUIRED)
add_compile_options(-Wall -Wextra -Wpedantic -Werror)
foreach(program prefill decode)
  add_executable(${program} ${program}.cpp common.cpp)
  target_compile_features(${program} PRIVATE cxx_std_17)
  target_link_libraries(${program} PRIVATE kvlink::kvlink)
endforeach()
";

fn cpp(prefix: &Prefix) -> Option<Engines> {
    let dir = fresh("engines-cpp");
    let sources = ["prefill.cpp", "decode.cpp", "common.cpp", "common.hpp"].map(|f| format!("examples/cpp/{f}"));
    copy(&dir, &sources.each_ref().map(String::as_str));
    fs::write(dir.join("CMakeLists.txt"), CMAKE_PROJECT).unwrap();
    let mut cmake = Command::new("cmake");
    clean(&mut cmake).current_dir(&dir).args(["-S", ".", "-B", "."]);
    succeed(cmake.arg(format!("-DCMAKE_PREFIX_PATH={}", prefix.path.display())));
    succeed(clean(Command::new("cmake").arg("--build").arg(&dir)));
    Some(Engines { language: "C++", dir })
}

/// A new environment with nothing but the wheel.
fn python(prefix: &Prefix) -> Option<Engines> {
    if !all_here(&["python3"]) {
        return None;
    }
    let dir = fresh("engines-python");
    let (venv, wheels) = (dir.join("venv"), dir.join("wheels"));
    succeed(Command::new("python3").args(["-m", "venv"]).arg(&venv));
    let pip = || {
        let mut pip = Command::new(venv.join("bin/pip"));
        clean(&mut pip).args(["-q", "--disable-pip-version-check"]);
        pip
    };
    let mut build = pip();
    build.env("KVLINK_BUILD_LIBRARY", prefix.so()).args(["wheel", "--no-deps", "-w"]).arg(&wheels);
    succeed(build.arg(root().join("bindings/python")));
    let wheel = fs::read_dir(&wheels).unwrap().next().unwrap().unwrap().path();
    succeed(pip().arg("install").arg(wheel));
    for program in ["prefill", "decode"] {
        copy(&dir, &["bindings/python/examples/engine.py", &format!("bindings/python/examples/{program}.py")]);
        let start = format!("#!/bin/sh\nexec {}/bin/python {}/{program}.py \"$@\"\n", venv.display(), dir.display());
        let path = dir.join(program);
        fs::write(&path, start).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    Some(Engines { language: "Python", dir })
}

fn go(prefix: &Prefix) -> Option<Engines> {
    let mut find = Command::new("sh");
    let go = succeed(find.arg(root().join("scripts/find-go.sh"))).trim().to_string();
    let dir = fresh("engines-go");
    succeed(Command::new("cp").arg("-r").arg(root().join("bindings/go")).arg(dir.join("kvlink")));
    let mut build = Command::new(go);
    clean(&mut build).current_dir(dir.join("kvlink")).env("PKG_CONFIG_PATH", prefix.lib().join("pkgconfig"));
    // The toolchain that was found, and no network.
    build.env("GOTOOLCHAIN", "local").env("GOFLAGS", "-mod=readonly").env("GOPROXY", "off");
    succeed(build.args(["build", "-o"]).arg(&dir).args(["./examples/prefill", "./examples/decode"]));
    Some(Engines { language: "Go", dir })
}

/// The demo's driver: fills and checks the memory of the engines that it starts.
pub fn driver() -> PathBuf {
    let mut cargo = Command::new(env!("CARGO"));
    clean(&mut cargo).current_dir(root()).args(["build", "--release", "--example", "demo", "--target-dir"]);
    succeed(cargo.env_remove("CARGO_BUILD_TARGET").arg(cargo_target()));
    cargo_target().join("release/examples/demo")
}

/// Moves a request from one to the other; `demo` starts the driver.
pub fn moves(mut demo: Command, p: &Engines, d: &Engines, mode: &str) -> Result<(), String> {
    let dir = fresh(&format!("pair-{}-{}-{mode}", p.language, d.language));
    symlink(p.dir.join("prefill"), dir.join("prefill")).unwrap();
    symlink(d.dir.join("decode"), dir.join("decode")).unwrap();
    demo.arg(dir).arg(format!("MODE={mode}"));
    let output = demo.args(["MODEL=Kimi-Linear", "P_TP=1", "D_TP=2", "TOKENS=512"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    match output.status.success() && text.contains("all bytes are right") {
        true => Ok(()),
        false => Err(format!("{} to {}, {mode}:\n{text}", p.language, d.language)),
    }
}

#[test]
fn engines_of_every_pair_of_languages_move_a_hybrid_both_ways() {
    let Some(prefix) = prefix().filter(|_| all_here(&["pkg-config", "c++"])) else { return };
    let engines: Vec<Engines> = [c, cpp, python, go].iter().filter_map(|build| build(prefix)).collect();
    let driver = driver();
    let mut failed = Vec::new();
    for p in &engines {
        for d in &engines {
            failed.extend(["read", "write"].iter().filter_map(|mode| moves(prefix.program(&driver), p, d, mode).err()));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
