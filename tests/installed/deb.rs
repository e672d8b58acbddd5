//! The Debian packages: built, checked, installed into a clean system, used there, and purged.

use crate::chroot::{Root, is_root};
use crate::files::{expected, tree};
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

/// A minimal system with a C compiler, from the distribution's mirror; kept outside the tree for the next run.
fn system() -> Result<PathBuf, String> {
    let release = fs::read_to_string("/etc/os-release").map_err(|e| format!("/etc/os-release: {e}"))?;
    let codename =
        release.lines().find_map(|l| l.strip_prefix("VERSION_CODENAME=")).ok_or("the system has no codename")?;
    let home = std::env::var_os("HOME").map(|h| Path::new(&h).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or(home).ok_or("HOME is not set")?.join("kvlink");
    fs::create_dir_all(&cache).map_err(|e| format!("{}: {e}", cache.display()))?;
    let (kept, new) = (cache.join(format!("{codename}-c.tar.gz")), format!("{codename}-{}.tar.gz", std::process::id()));
    if !kept.exists() {
        let new = cache.join(new);
        let mut mmdebstrap = Command::new("mmdebstrap");
        mmdebstrap.args(["--variant=minbase", "--include=gcc,libc6-dev,pkg-config", codename]).arg(&new);
        let output = output(&mut mmdebstrap);
        if !output.status.success() {
            let _ = fs::remove_file(new);
            return Err(format!("{mmdebstrap:?}: {}", String::from_utf8_lossy(&output.stderr)));
        }
        fs::rename(new, &kept).map_err(|e| format!("{}: {e}", kept.display()))?;
    }
    Ok(kept)
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

/// What both packages install, of what CMake does.
fn packaged(multiarch: &str) -> BTreeSet<String> {
    let installed = expected(&format!("lib/{multiarch}")).into_iter().filter(|f| !f.ends_with("/LICENSE"));
    let renamed = installed.map(|f| match f {
        f if f.contains("/man/") => format!("usr/{f}.gz"),
        f => format!("usr/{}", f.replace("targets-release", "targets-none")),
    });
    let documents = ["libkvlink0", "libkvlink-dev"].map(|p| format!("usr/share/doc/{p}"));
    renamed.chain(documents.iter().flat_map(|d| [format!("{d}/copyright"), format!("{d}/changelog.gz")])).collect()
}

#[test]
fn a_clean_system_installs_uses_and_purges_the_packages() {
    let Some(dir) = packages().filter(|_| all_here(&["mmdebstrap"]) && Root::possible()) else { return };
    if !is_root() {
        return skip("a clean system is made as root");
    }
    let archive = match system() {
        Ok(archive) => archive,
        Err(why) => return skip(&format!("no clean system: {why}")),
    };
    let system = Root::new(fresh("system"));
    succeed(Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(&system.path).arg("--exclude=./dev/*"));
    let before = files(&system);

    for (name, file) in [("libkvlink0_", ".deb"), ("libkvlink-dev_", ".deb")] {
        system.put(&package(dir, name, file), "tmp/packages");
    }
    succeed(&mut system.command("sh", &["-c", "dpkg -i /tmp/packages/*.deb"]));
    let multiarch = succeed(Command::new("dpkg-architecture").args(["-q", "DEB_HOST_MULTIARCH"]));
    let added: BTreeSet<String> = files(&system).difference(&before).cloned().collect();
    assert_eq!(added, packaged(multiarch.trim()));

    system.put(&root().join("examples/c/minimal.c"), "tmp");
    let dynamic = "cd /tmp && cc -std=c99 -Wall -Werror minimal.c $(pkg-config --cflags --libs kvlink) -o d && ./d";
    assert_eq!(succeed(&mut system.command("sh", &["-c", dynamic])), RIGHT);
    let without = "cd /tmp && cc -std=c99 minimal.c -static $(pkg-config --static --cflags --libs kvlink) -o s && ./s";
    assert_eq!(succeed(&mut system.command("sh", &["-c", without])), RIGHT);

    succeed(&mut system.command("dpkg", &["--purge", "libkvlink-dev", "libkvlink0"]));
    assert_eq!(files(&system), before);
}
