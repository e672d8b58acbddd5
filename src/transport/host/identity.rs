//! Who we are: host, pid namespace, process; as the kernel tells it.

use super::metadata::Identity;
use crate::error::{Error, Result, Status};
use std::io::Read;
use std::os::linux::fs::MetadataExt;

fn system(what: &str, e: impl std::fmt::Display) -> Error {
    Error::new(Status::System, format!("{what}: {e}"))
}

/// This process.
pub(super) fn own() -> Result<Identity> {
    let namespace = std::fs::metadata("/proc/self/ns/pid").map_err(|e| system("/proc/self/ns/pid", e))?.st_ino();
    Ok(Identity { boot: boot_id()?, namespace, pid: std::process::id(), start: start_time("self")? })
}

/// 16 random bytes.
pub(super) fn nonce() -> Result<[u8; 16]> {
    let mut n = [0; 16];
    let file = std::fs::File::open("/dev/urandom");
    file.and_then(|mut f| f.read_exact(&mut n)).map_err(|e| system("/dev/urandom", e))?;
    Ok(n)
}

/// When a process was started, in clock ticks after boot: with its pid it names the process for good.
pub(super) fn start_time(pid: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).map_err(|e| system(&path, e))?;
    parse_start_time(&text).ok_or_else(|| system(&path, "no start time in field 22"))
}

/// Field 22; the second field is a name in parentheses that may contain anything.
fn parse_start_time(stat: &str) -> Option<u64> {
    let (_, after) = stat.rsplit_once(')')?;
    after.split_ascii_whitespace().nth(19)?.parse().ok()
}

fn boot_id() -> Result<[u8; 16]> {
    let path = "/proc/sys/kernel/random/boot_id";
    let text = std::fs::read_to_string(path).map_err(|e| system(path, e))?;
    parse_uuid(text.trim()).ok_or_else(|| system(path, format!("{:?} is no UUID", text.trim())))
}

fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let mut digits = text.bytes().filter(|b| *b != b'-').map(|b| (b as char).to_digit(16));
    let mut id = [0; 16];
    for byte in &mut id {
        *byte = (digits.next()?? << 4 | digits.next()??) as u8;
    }
    digits.next().is_none().then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_process_cannot_hide_its_start_time() {
        let stat = "12 (a) b 1 2) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21";
        assert_eq!(parse_start_time(stat), Some(4711));
        assert_eq!(parse_start_time("12 (a) S 1"), None);
        assert_eq!(start_time("self").unwrap(), start_time(&std::process::id().to_string()).unwrap());
    }

    #[test]
    fn a_boot_id_is_a_uuid() {
        assert_eq!(parse_uuid("00112233-4455-6677-8899-aabbccddeeff").unwrap()[15], 0xff);
        for bad in ["", "00112233-4455-6677-8899-aabbccddeef", "00112233-4455-6677-8899-aabbccddeeff0", "zz"] {
            assert_eq!(parse_uuid(bad), None, "{bad}");
        }
        assert_eq!(own().unwrap(), own().unwrap());
    }
}
