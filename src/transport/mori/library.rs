//! Finding `libkvlink_mori.so`, and saying exactly why it cannot be used.

use super::options::MoriOptions;
use super::preflight::{self, PROGRAM};
use super::sys::{self, Library};
use crate::error::{Error, Result, Status};
use parking_lot::Mutex;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

const FILE: &str = "libkvlink_mori.so";
const HELP: &str = "it is built where MoRI is installed (cmake -DKVLINK_MORI=..., docs/transports.md)";

/// The one that this process uses.
static LOADED: OnceLock<(PathBuf, Library)> = OnceLock::new();
/// Held while a machine is looked at, which takes a while.
static LOADING: Mutex<()> = Mutex::new(());

/// The one that this process has loaded.
pub(super) fn loaded() -> Option<&'static Library> {
    LOADED.get().map(|(_, library)| library)
}

pub(super) fn unavailable(text: String) -> Error {
    Error::new(Status::TransportUnavailable, text)
}

/// Loads the library, after a check of the machine in another process.
pub(super) fn load(options: &MoriOptions) -> Result<&'static Library> {
    let file = match &options.library {
        Some(path) => named(path)?,
        None => beside(sys::own_file().as_deref())?,
    };
    let file = file.canonicalize().unwrap_or(file);
    let _loading = LOADING.lock();
    if let Some((other, _)) = LOADED.get().filter(|(other, _)| *other != file) {
        let (other, file) = (other.display(), file.display());
        return Err(unavailable(format!("mori: this process uses {other} already and cannot load {file} as well")));
    }
    let program = file.with_file_name(PROGRAM);
    if !program.is_file() {
        return Err(unavailable(format!("mori: there is no {PROGRAM} beside {}: {HELP}", file.display())));
    }
    preflight::check(&program, options)?;
    if let Some(library) = loaded() {
        return Ok(library);
    }
    let library = Library::load(file.as_os_str())
        .map_err(|why| unavailable(format!("mori: {} cannot be loaded: {why}", file.display())))?;
    Ok(&LOADED.get_or_init(|| (file, library)).1)
}

/// A file, or the directory that it is in.
fn named(path: &Path) -> Result<PathBuf> {
    let file = if path.is_dir() { path.join(FILE) } else { path.to_path_buf() };
    if file.is_file() {
        return Ok(file);
    }
    Err(unavailable(format!("mori: there is no {}: {HELP}", file.display())))
}

/// Where an installation has it: in the directory `kvlink` beside libkvlink, or beside it.
fn beside(own: Option<&Path>) -> Result<PathBuf> {
    let dir =
        own.and_then(Path::parent).map(|d| d.canonicalize().unwrap_or_else(|_| d.to_path_buf())).unwrap_or_default();
    let places = [dir.join("kvlink").join(FILE), dir.join(FILE)];
    places.iter().find(|p| p.is_file()).cloned().ok_or_else(|| {
        let [first, second] = places.map(|p| p.display().to_string());
        unavailable(format!("mori: there is neither {first} nor {second}, and mori_library names no other: {HELP}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(path: Option<&Path>) -> String {
        let options = MoriOptions { library: path.map(Path::to_path_buf), ..MoriOptions::default() };
        let e = load(&options).err().unwrap();
        assert_eq!(e.status(), Status::TransportUnavailable);
        e.message().to_string()
    }

    #[test]
    fn what_is_not_there_is_named_with_how_to_get_it() {
        let dir = std::env::temp_dir().join(format!("kvlink-mori-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let nowhere = refused(None);
        assert!(nowhere.contains("kvlink/libkvlink_mori.so") && nowhere.contains("KVLINK_MORI"), "{nowhere}");
        let absent = refused(Some(&dir));
        assert!(absent.contains(dir.join(FILE).to_str().unwrap()) && absent.contains("KVLINK_MORI"), "{absent}");
        std::fs::write(dir.join(FILE), "not a library").unwrap();
        let alone = refused(Some(&dir.join(FILE)));
        assert!(alone.contains("there is no kvlink-mori-check beside"), "{alone}");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
