//! The ABI of the header, as abidw describes it: a library with an empty body for every function that the header declares.
//!
//! That the Rust side has the same structs is the matter of tests/c_abi.rs, and that it declares the same functions that of
//! tests/header.rs; debuginfo of the Rust library would change with every compiler.

use crate::cheader::{functions, growing_structs};
use crate::tools::{output, root, succeed};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

pub enum Change {
    None,
    /// Old programs run; the report.
    Compatible(String),
    Incompatible(String),
}

fn place(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("abi").join(name);
    fs::create_dir_all(&dir).unwrap();
    dir
}

/// Writes the ABI of a header down; `name` is a directory for it.
pub fn dump(name: &str, header: &str, map: &str) -> PathBuf {
    let dir = place(name);
    let bodies: String =
        functions(header).iter().map(|f| format!("{} {{ __builtin_trap(); }}\n", f.declaration)).collect();
    fs::write(dir.join("kvlink.h"), header).unwrap();
    fs::write(dir.join("kvlink.c"), format!("#include <kvlink.h>\n{bodies}")).unwrap();
    fs::write(dir.join("kvlink.map"), map).unwrap();
    let mut cc = Command::new("cc");
    cc.current_dir(&dir).args(["-std=c99", "-g", "-fno-eliminate-unused-debug-types", "-fPIC", "-shared", "-I."]);
    cc.args(["-Wl,--version-script=kvlink.map", "-Wl,-soname,libkvlink.so.0", "kvlink.c", "-o", "libkvlink.so"]);
    succeed(&mut cc);
    let mut abidw = Command::new("abidw");
    abidw.current_dir(&dir).args(["--no-corpus-path", "--no-comp-dir-path", "--no-show-locs", "--no-elf-needed"]);
    abidw.args(["--type-id-style", "hash", "--load-all-types", "--headers-dir", ".", "--out-file", "kvlink.abi"]);
    succeed(abidw.arg("libkvlink.so"));
    dir.join("kvlink.abi")
}

/// What changed from one ABI to another.
pub fn compare(old: &Path, new: &Path, header: &str) -> Change {
    let suppressions = new.with_extension("suppressions");
    // Callers of structs with struct_size say how much they know.
    let grown = format!(
        "[suppress_type]\ntype_kind = struct\nname_regexp = ^({})$\nhas_data_member_inserted_at = end\n",
        growing_structs(header).join("|")
    );
    fs::write(&suppressions, grown).unwrap();
    let breaking = abidiff(&[Path::new("--no-added-syms"), Path::new("--suppressions"), &suppressions, old, new]);
    if let Some(report) = breaking {
        return Change::Incompatible(report);
    }
    abidiff(&[Path::new("--harmless"), old, new]).map_or(Change::None, Change::Compatible)
}

/// The report, if there is a difference.
fn abidiff(args: &[&Path]) -> Option<String> {
    let mut command = Command::new("abidiff");
    let output = output(command.arg("--non-reachable-types").args(args));
    let report = String::from_utf8_lossy(&output.stdout).into_owned();
    // The lowest two bits say that the tool failed or was misused, 4 and 8 that the ABI changed.
    let code = output.status.code().unwrap_or(1);
    assert!(code & 3 == 0, "{command:?}: {}\n{report}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    (code != 0).then_some(report)
}

#[test]
fn changes_are_told_apart() {
    if !crate::tools::all_here(&crate::NEEDED) {
        return;
    }
    let read = |path: &str| fs::read_to_string(root().join(path)).unwrap();
    let (header, map) = (read("include/kvlink.h"), read("abi/kvlink.map"));
    let old = dump("before", &header, &map);
    let after = |from: &str, to: &str| {
        assert!(header.contains(from), "the header has no {from:?}");
        let header = header.replacen(from, to, 1);
        compare(&old, &dump("after", &header, &map), &header)
    };
    assert!(matches!(after("x", "x"), Change::None));
    let compatible = [
        ("} kvlink_offer_t;", "    uint64_t more;\n} kvlink_offer_t;"),
        ("KVLINK_DTYPE_I32 = 9,", "KVLINK_DTYPE_I32 = 9, KVLINK_DTYPE_NEW = 10,"),
    ];
    for (from, to) in compatible {
        assert!(matches!(after(from, to), Change::Compatible(_)), "{to}");
    }
    let incompatible = [
        ("    uint64_t reach_tokens;", "    uint64_t reach_tokens, more;"),
        ("} kvlink_group_t;", "    uint64_t more;\n} kvlink_group_t;"),
        ("KVLINK_DTYPE_I32 = 9,", "KVLINK_DTYPE_I32 = 10,"),
        ("kvlink_status_text(int32_t status)", "kvlink_status_text(int64_t status)"),
    ];
    for (from, to) in incompatible {
        assert!(matches!(after(from, to), Change::Incompatible(_)), "{to}");
    }
    let fewer = map.replace("        kvlink_poll;\n", "");
    let change = compare(&old, &dump("fewer", &header, &fewer), &header);
    assert!(matches!(change, Change::Incompatible(_)), "a function is gone");
}
