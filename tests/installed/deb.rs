//! The Debian packages: built, checked, installed into a clean system, used there, and purged.

use crate::chroot::{Root, is_root};
use crate::files::{expected, tree};
use crate::languages::{Engines, driver, moves};
use crate::prefix::{RIGHT, clean, fresh};
use crate::tools::{all_here, output, root, skip, succeed};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Where the packages are; `None`, said as a skip, if something that builds them is missing.
fn packages() -> Option<&'static Path> {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        if !all_here(&["dpkg-buildpackage", "dh", "cmake", "git"]) {
            return None;
        }
        let out = fresh("packages");
        succeed(clean(Command::new("bash").arg(root().join("scripts/deb.sh")).arg(&out)));
        Some(out)
    });
    built.as_deref()
}

/// The file of the packages that begins and ends like this.
fn package(dir: &Path, begin: &str, end: &str) -> PathBuf {
    let files = tree(dir);
    let found: Vec<&String> = files.iter().filter(|f| f.starts_with(begin) && f.ends_with(end)).collect();
    assert_eq!(found.len(), 1, "{begin}*{end} among {files:?}");
    dir.join(found[0])
}

#[test]
fn the_packages_have_the_version_of_the_library() {
    let changelog = fs::read_to_string(root().join("debian/changelog")).unwrap();
    let newest = changelog.split_once('(').and_then(|(_, rest)| rest.split_once(')')).unwrap().0;
    assert_eq!(newest, env!("CARGO_PKG_VERSION"), "debian/changelog and Cargo.toml");
}

#[test]
fn lintian_finds_no_error() {
    let Some(dir) = packages().filter(|_| all_here(&["lintian"])) else { return };
    succeed(Command::new("lintian").args(["--fail-on", "error"]).arg(package(dir, "kvlink_", ".changes")));
}

#[test]
fn the_library_package_has_the_library_alone() {
    let Some(dir) = packages() else { return };
    let unpacked = fresh("libkvlink0");
    succeed(Command::new("dpkg-deb").arg("-x").arg(package(dir, "libkvlink0_", ".deb")).arg(&unpacked));
    let files = tree(&unpacked);
    let other = |f: &&String| !f.contains("/libkvlink.so.0") && !f.starts_with("usr/share/doc/libkvlink0/");
    assert_eq!(files.iter().filter(other).count(), 0, "{files:?}");
    assert!(files.iter().any(|f| f.ends_with("/libkvlink.so.0")), "{files:?}");
}

/// An archive of a minimal system with these packages, from the distribution's mirror; kept outside the tree for the next
/// run.
fn archive(name: &str, packages: &str) -> Result<PathBuf, String> {
    let release = fs::read_to_string("/etc/os-release").map_err(|e| format!("/etc/os-release: {e}"))?;
    let codename =
        release.lines().find_map(|l| l.strip_prefix("VERSION_CODENAME=")).ok_or("the system has no codename")?;
    let home = std::env::var_os("HOME").map(|h| Path::new(&h).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or(home).ok_or("HOME is not set")?.join("kvlink");
    fs::create_dir_all(&cache).map_err(|e| format!("{}: {e}", cache.display()))?;
    let kept = cache.join(format!("{codename}-{name}.tar.gz"));
    if !kept.exists() {
        let new = cache.join(format!("{codename}-{name}-{}.tar.gz", std::process::id()));
        let mut mmdebstrap = Command::new("mmdebstrap");
        mmdebstrap.args(["--variant=minbase", &format!("--include={packages}"), codename]).arg(&new);
        let output = output(&mut mmdebstrap);
        if !output.status.success() {
            let _ = fs::remove_file(new);
            return Err(format!("{mmdebstrap:?}: {}", String::from_utf8_lossy(&output.stderr)));
        }
        fs::rename(new, &kept).map_err(|e| format!("{}: {e}", kept.display()))?;
    }
    Ok(kept)
}

/// A minimal system with these packages; `None`, said as a skip, if this machine cannot have one.
fn clean_system(name: &str, packages: &str) -> Option<Root> {
    if !all_here(&["mmdebstrap"]) || !Root::possible() {
        return None;
    }
    if !is_root() {
        skip("a clean system is made as root");
        return None;
    }
    let archive = archive(name, packages).map_err(|why| skip(&format!("no clean system: {why}"))).ok()?;
    let system = Root::new(fresh(&format!("system-{name}")));
    succeed(Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(&system.path).arg("--exclude=./dev/*"));
    Some(system)
}

/// Installs these packages and nothing else.
fn install(system: &Root, dir: &Path, names: &[&str]) {
    for name in names {
        system.put(&package(dir, &format!("{name}_"), ".deb"), "tmp/packages");
    }
    succeed(&mut system.command("sh", &["-c", "dpkg -i /tmp/packages/*.deb"]));
}

fn multiarch() -> String {
    succeed(Command::new("dpkg-architecture").args(["-q", "DEB_HOST_MULTIARCH"])).trim().to_string()
}

/// Files of a system, less what dpkg and ldconfig note down.
fn files(system: &Root) -> BTreeSet<String> {
    let notes = ["proc/", "dev/", "var/lib/dpkg/", "var/log/", "var/cache/ldconfig/"];
    let found = ["usr", "etc", "var", "opt", "srv", "root", "home"].map(|d| system.path.join(d));
    let found = found.iter().filter(|d| d.is_dir()).flat_map(|d| {
        let top = d.file_name().unwrap().to_str().unwrap().to_string();
        tree(d).into_iter().map(move |f| format!("{top}/{f}"))
    });
    found.filter(|f| notes.iter().all(|n| !f.starts_with(n))).collect()
}

/// What both packages of the library install, of what CMake does.
fn packaged(multiarch: &str) -> BTreeSet<String> {
    let installed = expected(&format!("lib/{multiarch}")).into_iter().filter(|f| !f.ends_with("/LICENSE"));
    let renamed = installed.map(|f| match f {
        f if f.contains("/man/") => format!("usr/{f}.gz"),
        f => format!("usr/{}", f.replace("targets-release", "targets-none")),
    });
    let documents = ["libkvlink0", "libkvlink-dev"].map(|p| format!("usr/share/doc/{p}"));
    renamed.chain(documents.iter().flat_map(|d| [format!("{d}/copyright"), format!("{d}/changelog.gz")])).collect()
}

/// Between processes inside the system, a hybrid model is read, and written layer by layer.
fn both_ways(engines: &Engines) {
    let driver = driver();
    for mode in ["read", "write"] {
        moves(Command::new(&driver), engines, engines, mode).unwrap_or_else(|why| panic!("{why}"));
    }
}

#[test]
fn a_clean_system_installs_uses_and_purges_the_library() {
    let Some(dir) = packages() else { return };
    let Some(system) = clean_system("c", "gcc,libc6-dev,pkg-config") else { return };
    let before = files(&system);

    install(&system, dir, &["libkvlink0", "libkvlink-dev"]);
    let added: BTreeSet<String> = files(&system).difference(&before).cloned().collect();
    assert_eq!(added, packaged(&multiarch()));

    for file in ["minimal.c", "prefill.c", "decode.c", "common.c", "common.h"] {
        system.put(&root().join("examples/c").join(file), "tmp");
    }
    let engines = Engines { language: "packaged C", dir: fresh("engines-packaged-c") };
    for program in ["prefill", "decode"] {
        let sources = format!("-Wall -Werror {program}.c common.c $(pkg-config --cflags --libs kvlink)");
        let build = format!("cd /tmp && cc -std=c99 {sources} -o {program}");
        succeed(&mut system.command("sh", &["-c", &build]));
        system.program(&engines.dir.join(program), &format!("/tmp/{program}"), &[]);
    }
    both_ways(&engines);
    let without = "cd /tmp && cc -std=c99 minimal.c -static $(pkg-config --static --cflags --libs kvlink) -o s && ./s";
    assert_eq!(succeed(&mut system.command("sh", &["-c", without])), RIGHT);

    succeed(&mut system.command("dpkg", &["--purge", "libkvlink-dev", "libkvlink0"]));
    assert_eq!(files(&system), before);
}

/// Says where Python found the package, and which files named libkvlink the process has mapped.
const FOUND: &str = "import kvlink
print(kvlink.__file__)
maps = open('/proc/self/maps', encoding='utf-8').read().splitlines()
print(*sorted({line.split()[-1] for line in maps if 'libkvlink' in line}))";

#[test]
fn a_clean_system_installs_uses_and_purges_the_python_package() {
    let Some(dir) = packages() else { return };
    let Some(system) = clean_system("python", "python3") else { return };
    let before = files(&system);

    install(&system, dir, &["libkvlink0", "python3-kvlink"]);
    let source = |dir: &Path| tree(dir).into_iter().filter(|f| !f.contains("__pycache__")).collect::<BTreeSet<_>>();
    let modules = source(&root().join("bindings/python/src/kvlink"));
    assert_eq!(source(&system.path.join("usr/lib/python3/dist-packages/kvlink")), modules);

    let version = env!("CARGO_PKG_VERSION");
    let library = format!("/usr/lib/{}/libkvlink.so.{version}", multiarch());
    let found = succeed(&mut system.command("python3", &["-c", FOUND]));
    assert_eq!(found, format!("/usr/lib/python3/dist-packages/kvlink/__init__.py\n{library}\n"));

    let engines = Engines { language: "packaged Python", dir: fresh("engines-packaged") };
    system.put(&root().join("bindings/python/examples/engine.py"), "tmp");
    for program in ["prefill", "decode"] {
        system.put(&root().join(format!("bindings/python/examples/{program}.py")), "tmp");
        system.program(&engines.dir.join(program), "python3", &[&format!("/tmp/{program}.py")]);
    }
    both_ways(&engines);

    succeed(&mut system.command("dpkg", &["--purge", "python3-kvlink", "libkvlink0"]));
    assert_eq!(files(&system), before);
}

#[test]
fn the_python_package_takes_the_libraries_that_it_can_load() {
    let Some(dir) = packages() else { return };
    let depends =
        succeed(Command::new("dpkg-deb").arg("-f").arg(package(dir, "python3-kvlink_", ".deb")).arg("Depends"));
    let version = env!("CARGO_PKG_VERSION");
    let (major, minor) = (env!("CARGO_PKG_VERSION_MAJOR"), env!("CARGO_PKG_VERSION_MINOR"));
    let next = |n: &str| n.parse::<u64>().unwrap() + 1;
    let end = if major == "0" { format!("0.{}", next(minor)) } else { next(major).to_string() };
    let bounds = format!("libkvlink0 (>= {version}), libkvlink0 (<< {end}~), ");
    assert!(depends.starts_with(&bounds), "{depends}");
}
