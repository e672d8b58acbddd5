//! Which libraries a shared object asks for, read from its file: loading it would run them.

use std::path::Path;

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;

/// The names of the libraries that an object of this machine's kind is linked to; nothing of what is not one.
pub(super) fn needed(path: &Path) -> Vec<String> {
    std::fs::read(path).ok().and_then(|file| names(&file)).unwrap_or_default()
}

fn names(file: &[u8]) -> Option<Vec<String>> {
    // 64 bits, little-endian.
    if file.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let (table, size, count) = (word(file, 32)?, half(file, 54)?, half(file, 56)?);
    let mut dynamic = (0, 0);
    // Offset in the file, address, length.
    let mut loaded = Vec::new();
    for i in 0..count {
        let at = table.checked_add(i.checked_mul(size)?)?;
        let kind = u32::from_le_bytes(bytes(file, at)?);
        let (offset, address, length) =
            (word(file, at.checked_add(8)?)?, word(file, at.checked_add(16)?)?, word(file, at.checked_add(32)?)?);
        match kind {
            PT_LOAD => loaded.push((offset, address, length)),
            PT_DYNAMIC => dynamic = (offset, length),
            _ => {}
        }
    }
    let (mut wanted, mut strings) = (Vec::new(), None);
    for i in 0..dynamic.1 / 16 {
        let at = dynamic.0.checked_add(i * 16)?;
        match (word(file, at)?, word(file, at.checked_add(8)?)?) {
            (DT_NEEDED, name) => wanted.push(name),
            (DT_STRTAB, address) => strings = Some(address),
            _ => {}
        }
    }
    let strings = strings?;
    let holds = |(_, start, length): &&(u64, u64, u64)| strings.checked_sub(*start).is_some_and(|d| d < *length);
    let (offset, start, _) = loaded.iter().find(holds)?;
    let strings = offset.checked_add(strings - start)?;
    let text = |name: &u64| {
        let rest = file.get(usize::try_from(strings.checked_add(*name)?).ok()?..)?;
        let end = rest.iter().position(|b| *b == 0)?;
        Some(String::from_utf8_lossy(rest.get(..end)?).into_owned())
    };
    wanted.iter().map(text).collect()
}

fn bytes<const N: usize>(file: &[u8], at: u64) -> Option<[u8; N]> {
    let at = usize::try_from(at).ok()?;
    file.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn word(file: &[u8], at: u64) -> Option<u64> {
    bytes(file, at).map(u64::from_le_bytes)
}

fn half(file: &[u8], at: u64) -> Option<u64> {
    bytes(file, at).map(|b| u64::from(u16::from_le_bytes(b)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_executable_needs_the_c_library() {
        let own = std::env::current_exe().unwrap();
        assert!(needed(&own).iter().any(|n| n == "libc.so.6"), "{:?}", needed(&own));
    }

    #[test]
    fn what_is_broken_needs_nothing_and_hurts_nobody() {
        let mut file = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        file.truncate(1 << 20);
        for at in 4..64 {
            let was = std::mem::replace(&mut file[at], 0xff);
            let _ = names(&file);
            file[at] = was;
        }
        for end in 0..1024 {
            assert_eq!(names(&file[..end]), None);
        }
        assert!(needed(Path::new("/dev/null")).is_empty());
    }
}
