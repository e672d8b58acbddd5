//! The C ABI, tested from C against the built shared library: plainly, under the sanitizers and under valgrind; and what
//! the library looks like to a linker.

mod tools;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use tools::{output, root, skip, succeed};

const STRICT: [&str; 4] = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"];

/// Every program in tests/c; a test below fails if this is not so.
const PROGRAMS: [&str; 10] =
    ["arguments", "events", "handles", "layout", "panic", "process", "router", "status", "threads", "transfer"];

/// A directory of our own below target.
fn out() -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("c-abi");
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

/// A directory with a freshly built library under both its names: "default", or "hooks" with the feature test-hooks.
fn library(kind: &str) -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let target = BUILT.get_or_init(|| {
        let target = out().join("target");
        for (kind, features) in [("default", &[][..]), ("hooks", &["--features", "test-hooks"][..])] {
            let mut cargo = Command::new(env!("CARGO"));
            cargo.current_dir(root()).args(["build", "--lib"]).args(features).arg("--target-dir").arg(&target);
            // What this build was started with must not choose another place or another target for that one.
            cargo.env_remove("CARGO_BUILD_TARGET").env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
            succeed(&mut cargo);
            let dir = target.join(kind);
            std::fs::create_dir_all(&dir).unwrap();
            for name in ["libkvlink.so", "libkvlink.so.0"] {
                let to = dir.join(name);
                let _ = std::fs::remove_file(&to);
                std::fs::copy(target.join("debug/libkvlink.so"), to).unwrap();
            }
        }
        target
    });
    target.join(kind)
}

/// Compiles a program of tests/c; returns where it is.
fn compile(program: &str, variant: &str, flags: &[&str]) -> PathBuf {
    let (lib, exe) = (library("hooks"), out().join(format!("{program}-{variant}")));
    let mut cc = Command::new("cc");
    cc.current_dir(root()).arg("-std=c99").args(STRICT).args(["-g", "-O1", "-pthread"]).args(flags);
    cc.args(["-Iinclude", "-Itests/c"]).arg(format!("tests/c/{program}.c")).arg("tests/c/support.c");
    cc.arg("-o").arg(&exe).arg(lib.join("libkvlink.so")).arg(format!("-Wl,-rpath,{}", lib.display()));
    succeed(&mut cc);
    exe
}

fn plain(program: &str) {
    let text = succeed(Command::new(compile(program, "plain", &[])).env("RUST_BACKTRACE", "0"));
    assert!(text.contains("... ok"), "{program} has run no test:\n{text}");
}

/// Address and undefined-behaviour sanitizers on the C side. The library is not instrumented, but its allocations are the
/// sanitizer's: leaks and accesses to what it freed are found.
fn sanitized(program: &str) {
    static HAVE: OnceLock<bool> = OnceLock::new();
    let flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"];
    let have = *HAVE.get_or_init(|| {
        let source = out().join("empty.c");
        std::fs::write(&source, "int main(void) { return 0; }\n").unwrap();
        let built = output(Command::new("cc").args(flags).arg(&source).arg("-o").arg(out().join("empty")));
        built.status.success()
    });
    if !have {
        return skip("libasan or libubsan is missing: cc -fsanitize=address,undefined does not link");
    }
    let mut command = Command::new(compile(program, "asan", &flags));
    command.env("RUST_BACKTRACE", "0").env("ASAN_OPTIONS", "detect_leaks=1:abort_on_error=0:exitcode=99");
    succeed(&mut command);
}

fn valgrind(program: &str) {
    if Command::new("valgrind").arg("--version").output().is_err() {
        return skip("valgrind is missing");
    }
    let mut command = Command::new("valgrind");
    command.args(["-q", "--error-exitcode=99", "--leak-check=full", "--errors-for-leak-kinds=definite,indirect"]);
    command.args(["--fair-sched=try", "--num-callers=30"]);
    command.arg(format!("--suppressions={}", root().join("tests/c/valgrind.supp").display()));
    command.arg(compile(program, "valgrind", &[])).env("RUST_BACKTRACE", "0");
    succeed(&mut command);
}

macro_rules! programs {
    ($($name:ident),*) => {$(
        mod $name {
            #[test]
            fn plain() {
                super::plain(stringify!($name));
            }

            #[test]
            fn sanitized() {
                super::sanitized(stringify!($name));
            }

            #[test]
            fn valgrind() {
                super::valgrind(stringify!($name));
            }
        }
    )*};
}
programs!(arguments, events, handles, layout, panic, process, router, status, threads, transfer);

#[test]
fn every_program_is_run() {
    let files = std::fs::read_dir(root().join("tests/c")).unwrap();
    let names = files.filter_map(|f| Some(f.unwrap().file_name().to_str()?.strip_suffix(".c")?.to_string()));
    let found: BTreeSet<String> = names.filter(|n| n != "support").collect();
    assert_eq!(found, PROGRAMS.iter().map(ToString::to_string).collect());
}

#[test]
fn the_header_compiles_alone_as_c99_and_cpp11() {
    for (compiler, standard, file) in
        [("cc", "-std=c99", "alone.c"), ("cc", "-std=c11", "alone.c"), ("c++", "-std=c++11", "alone.cpp")]
    {
        let source = out().join(file);
        std::fs::write(&source, "#include \"kvlink.h\"\n#include \"kvlink.h\"\nint main() { return 0; }\n").unwrap();
        let mut command = Command::new(compiler);
        let prototypes: &[&str] = if compiler == "cc" { &["-Wno-strict-prototypes"] } else { &[] };
        command.current_dir(root()).arg(standard).args(STRICT).args(prototypes);
        succeed(command.args(["-Iinclude", "-fsyntax-only"]).arg(&source));
    }
}

/// Functions that the header declares.
fn declared() -> BTreeSet<String> {
    let header = std::fs::read_to_string(root().join("include/kvlink.h")).unwrap();
    let mut code = String::new();
    for piece in header.split("/*") {
        code.push_str(piece.split_once("*/").map_or(piece, |(_, rest)| rest));
    }
    let mut found = BTreeSet::new();
    let mut rest = code.as_str();
    while let Some(at) = rest.find("kvlink_") {
        let tail = &rest[at..];
        let end = tail.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(tail.len());
        if tail[end..].starts_with('(') {
            found.insert(tail[..end].to_string());
        }
        rest = &tail[end..];
    }
    found
}

fn exported(kind: &str) -> BTreeSet<String> {
    let lib = library(kind).join("libkvlink.so");
    let text = succeed(Command::new("nm").args(["-D", "--defined-only"]).arg(lib));
    text.lines().filter_map(|l| l.split_whitespace().last()).map(ToString::to_string).collect()
}

#[test]
fn the_library_exports_the_functions_of_the_header_and_nothing_else() {
    let list = std::fs::read_to_string(root().join("abi/kvlink.symbols")).unwrap();
    let listed: BTreeSet<String> = list.lines().map(ToString::to_string).collect();
    assert_eq!(
        listed.iter().cloned().collect::<Vec<_>>(),
        list.lines().collect::<Vec<_>>(),
        "abi/kvlink.symbols is sorted"
    );
    assert_eq!(declared(), listed, "header and abi/kvlink.symbols");
    assert_eq!(exported("default"), listed, "library and abi/kvlink.symbols");
}

#[test]
fn only_test_builds_export_the_hooks() {
    let more: Vec<String> = exported("hooks").difference(&exported("default")).cloned().collect();
    assert!(!more.is_empty() && more.iter().all(|s| s.starts_with("kvlink_test_")), "{more:?}");
}

#[test]
fn the_library_has_its_name_and_needs_the_system_alone() {
    let lib = library("default").join("libkvlink.so");
    let text = succeed(Command::new("readelf").arg("-d").arg(lib));
    let named = |what: &str| -> Vec<String> {
        let lines = text.lines().filter(|l| l.contains(what));
        lines.filter_map(|l| Some(l.split_once('[')?.1.split_once(']')?.0.to_string())).collect()
    };
    assert_eq!(named("(SONAME)"), ["libkvlink.so.0"]);
    let known = |n: &String| ["libc.so.", "libgcc_s.so.", "libm.so.", "ld-linux"].iter().any(|k| n.starts_with(k));
    let needed = named("(NEEDED)");
    assert!(!needed.is_empty() && needed.iter().all(known), "{needed:?}");
    assert_eq!(named("PATH)"), Vec::<String>::new());
}

/// Structs of the header with the offsets of their fields, in Rust.
macro_rules! structs {
    ($($name:ident { $($field:ident),* $(,)? })*) => {
        fn in_rust() -> Vec<String> {
            let mut out = Vec::new();
            $(
                use kvlink::ffi::$name;
                out.push(format!("{} {}", stringify!($name), size_of::<$name>()));
                $(out.push(format!("{}.{} {}", stringify!($name), stringify!($field), std::mem::offset_of!($name, $field)));)*
            )*
            out
        }
    };
}
structs! {
    kvlink_group_t {
        kind, block_tokens, num_blocks, reach, reach_tokens, context_size, context_rank, context_interleave, reserved,
    }
    kvlink_attention_t {
        layers, num_layers, role, order, group, region, offset, block_stride, layer_stride, heads, first_head, num_heads,
        key_dim, value_dim, planes, value_region, value_offset, kernel_tokens, dtype,
    }
    kvlink_record_t {
        layers, num_layers, role, group, region, offset, block_stride, layer_stride, token_stride, elements, dtype,
        element_bytes,
    }
    kvlink_section_t { units, width, first, count }
    kvlink_state_t {
        layers, num_layers, group, region, conv_offset, state_offset, slot_stride, layer_stride, conv, num_conv,
        conv_rows, conv_rows_outside, conv_dtype, state, state_dtype, reserved,
    }
    kvlink_axis_t { name, extent, common, reserved }
    kvlink_extent_t { begin, len, stride }
    kvlink_part_t { region, tile_tokens, offset, block_stride, token_stride, tile_stride, extents }
    kvlink_tensor_t { layer, group, dtype, element_bytes, role, axes, num_axes, parts, num_parts }
    kvlink_layout_desc_t {
        struct_size, reserved, model, region_bytes, num_regions, groups, num_groups, attention, num_attention, records,
        num_records, states, num_states, tensors, num_tensors,
    }
    kvlink_finding_t { subject, field, destination, source }
    kvlink_blocks_t { ids, count, first }
    kvlink_plan_request_t {
        struct_size, layer_first, layer_count, reserved, token_begin, token_end, token_total, source_blocks,
        num_source_blocks, destination_blocks, num_destination_blocks,
    }
    kvlink_span_t { src_offset, dst_offset, len, src_region, dst_region }
    kvlink_agent_config_t {
        struct_size, rank, ranks, allow_remote, instance, listen, advertise, leader, require_transport, host_disable,
        heartbeat_ms, heartbeat_misses, handshake_timeout_ms, transfer_timeout_ms, lease_ms, max_transfers, max_offers,
        max_accepts, max_peers, max_events, join_timeout_ms, nixl_backend, nixl_params, nixl_library, nixl_patience_ms,
        nixl_landing, mori_backend, mori_library, mori_host, mori_devices, mori_port, mori_qp_per_transfer,
        mori_post_batch_size, mori_num_workers, mori_poll_mode, mori_patience_ms,
    }
    kvlink_statistics_t { struct_size, reserved, bytes, spans, transfers, failures }
    kvlink_offer_t { struct_size, lease_ms, request, blocks, num_blocks, tokens, user_data }
    kvlink_ticket_info_t { struct_size, rank, incarnation, tokens, address, instance, request }
    kvlink_read_t {
        struct_size, timeout_ms, peer, ticket, ticket_len, blocks, num_blocks, token_begin, token_end, layer_first,
        layer_count, user_data,
    }
    kvlink_accept_t { struct_size, timeout_ms, request, blocks, num_blocks, token_begin, tokens, user_data }
    kvlink_write_t {
        struct_size, timeout_ms, peer, request, blocks, num_blocks, token_begin, token_end, token_total, layer_first,
        layer_count, last, reserved, aux, aux_len, user_data,
    }
    kvlink_moriio_t {
        struct_size, role, handshake_port, notify_port, dp_rank, dp_size, tp_rank, tp_size, host, handshake, handshake_len,
        user_data,
    }
    kvlink_router_t {
        struct_size, role, mode, beat_ms, dp_size, tp_size, discovery, http_address, zmq_address, user_data,
    }
    kvlink_route_t {
        struct_size, prefill_handshake, prefill_notify, decode_handshake, decode_notify, reserved, prefill_host,
        decode_host, unique,
    }
    kvlink_router_answer_t { struct_size, dp_rank, dp_size, tp_size, transfer_id, zmq_address, ticket, ticket_len }
    kvlink_router_params_t {
        struct_size, do_remote_decode, do_remote_prefill, remote_dp_size, remote_tp_size, remote_dp_rank, transfer_id,
    }
    kvlink_event_t { kind, status, user_data, id, peer, bytes, spans, payload, payload_len, rank }
}

/// Structs and fields as the header's text has them.
fn in_header() -> BTreeMap<String, Vec<String>> {
    let header = std::fs::read_to_string(root().join("include/kvlink.h")).unwrap();
    let mut found = BTreeMap::new();
    let mut current: Option<(String, Vec<String>)> = None;
    for line in header.lines() {
        let line = line.trim();
        if let Some(name) = line.strip_prefix("typedef struct ").and_then(|l| l.strip_suffix(" {")) {
            current = Some((name.to_string(), Vec::new()));
        } else if line.starts_with('}') {
            found.extend(current.take());
        } else if let (Some((_, fields)), Some(declaration)) = (&mut current, line.strip_suffix(';')) {
            let name = declaration.split('[').next().unwrap().rsplit([' ', '*']).next().unwrap();
            fields.push(name.to_string());
        }
    }
    found
}

#[test]
fn structs_have_the_same_layout_in_c_and_in_rust() {
    let structs = in_header();
    let mut source = String::from("#include \"kvlink.h\"\n#include <stdio.h>\nint main(void)\n{\n");
    for (name, fields) in &structs {
        source.push_str(&format!("    printf(\"{name} %zu\\n\", sizeof({name}));\n"));
        for f in fields {
            source.push_str(&format!("    printf(\"{name}.{f} %zu\\n\", offsetof({name}, {f}));\n"));
        }
    }
    source.push_str("    return 0;\n}\n");
    let (file, exe) = (out().join("offsets.c"), out().join("offsets"));
    std::fs::write(&file, source).unwrap();
    let mut cc = Command::new("cc");
    cc.current_dir(root()).arg("-std=c99").args(STRICT).arg("-Iinclude").arg(&file).arg("-o").arg(&exe);
    succeed(&mut cc);
    let text = succeed(&mut Command::new(exe));
    let mut c: Vec<&str> = text.lines().collect();
    let rust = in_rust();
    let mut rust: Vec<&str> = rust.iter().map(String::as_str).collect();
    c.sort_unstable();
    rust.sort_unstable();
    assert_eq!(c, rust);
}
