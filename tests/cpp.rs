//! The C++ layer: complete, clean under two compilers and two standards with and without exceptions, and does what it says.

mod programs;
mod tools;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use tools::{all_here, output, root, skip, succeed};

const STRICT: [&str; 6] = ["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror"];
const COMPILERS: [&str; 2] = ["g++", "clang++"];
const STANDARDS: [&str; 2] = ["-std=c++17", "-std=c++20"];
const MODES: [(&str, &[&str]); 2] =
    [("throwing", &["-DKVLINK_EXCEPTIONS"]), ("plain", &["-fno-exceptions", "-fno-rtti"])];

/// Every test program in tests/cpp.
const PROGRAMS: [&str; 4] = ["layout", "router", "transfer", "values"];

/// A directory of our own below target, with the library that this test was built with under both its names.
fn out(name: &str) -> PathBuf {
    let built = std::env::current_exe().unwrap().with_file_name("libkvlink.so");
    assert!(built.exists(), "no {}", built.display());
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cpp").join(name);
    std::fs::create_dir_all(&dir).unwrap();
    for link in ["libkvlink.so", "libkvlink.so.0"] {
        let _ = std::fs::remove_file(dir.join(link));
        std::os::unix::fs::symlink(&built, dir.join(link)).unwrap();
    }
    dir
}

fn compiler(name: &str, flags: &[&str]) -> Command {
    let mut command = Command::new(name);
    command.current_dir(root()).args(["-Iinclude", "-pthread"]).args(STRICT).args(flags);
    command
}

fn link(mut compile: Command, sources: &[PathBuf], dir: &Path, name: &str) -> PathBuf {
    let exe = dir.join(name);
    compile.args(sources).arg("-L").arg(dir).args(["-lkvlink", "-Wl,-rpath,$ORIGIN", "-o"]).arg(&exe);
    succeed(&mut compile);
    exe
}

fn source(path: &str) -> PathBuf {
    root().join(path)
}

/// Whether a program of this text compiles.
fn compiles(dir: &Path, text: &str) -> Result<(), String> {
    let file = dir.join("snippet.cpp");
    std::fs::write(&file, format!("#include <kvlink.hpp>\n{text}\n")).unwrap();
    let output = output(compiler("g++", &["-std=c++17", "-fsyntax-only"]).arg(file));
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

/// All headers of the layer as one text.
fn layer() -> String {
    headers().iter().map(|h| std::fs::read_to_string(source("include").join(h)).unwrap()).collect()
}

/// All headers of the layer, below `include`.
fn headers() -> Vec<String> {
    let dir = std::fs::read_dir(source("include/kvlink")).unwrap();
    let parts = dir.map(|f| format!("kvlink/{}", f.unwrap().file_name().to_str().unwrap()));
    std::iter::once("kvlink.hpp".to_string()).chain(parts).collect()
}

fn programs_run(compiler_name: &str, standard: &str) {
    if !all_here(&[compiler_name]) {
        return;
    }
    for (mode, flags) in MODES {
        let dir = out(&format!("{compiler_name}{standard}-{mode}"));
        for program in PROGRAMS {
            let compile = compiler(compiler_name, &[&[standard], flags].concat());
            let exe = link(compile, &[source(&format!("tests/cpp/{program}.cpp"))], &dir, program);
            let text = succeed(&mut Command::new(exe));
            let runs =
                std::fs::read_to_string(source(&format!("tests/cpp/{program}.cpp"))).unwrap().matches("RUN(").count();
            assert_eq!(text.matches("... ok").count(), runs, "{program} has not run all tests:\n{text}");
        }
    }
}

#[test]
fn programs_run_with_gcc_as_cpp17() {
    programs_run(COMPILERS[0], STANDARDS[0]);
}

#[test]
fn programs_run_with_gcc_as_cpp20() {
    programs_run(COMPILERS[0], STANDARDS[1]);
}

#[test]
fn programs_run_with_clang_as_cpp17() {
    programs_run(COMPILERS[1], STANDARDS[0]);
}

#[test]
fn programs_run_with_clang_as_cpp20() {
    programs_run(COMPILERS[1], STANDARDS[1]);
}

#[test]
fn programs_are_clean_under_the_sanitizers() {
    let dir = out("sanitized");
    let flags =
        ["-std=c++17", "-g", "-O1", "-DKVLINK_EXCEPTIONS", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"];
    let empty = dir.join("empty.cpp");
    std::fs::write(&empty, "int main() {}\n").unwrap();
    if !output(compiler("g++", &flags).arg(&empty).arg("-o").arg(dir.join("empty"))).status.success() {
        return skip("libasan or libubsan is missing: g++ -fsanitize=address,undefined does not link");
    }
    for program in PROGRAMS {
        let exe = link(compiler("g++", &flags), &[source(&format!("tests/cpp/{program}.cpp"))], &dir, program);
        succeed(Command::new(exe).env("ASAN_OPTIONS", "detect_leaks=1:abort_on_error=0:exitcode=99"));
    }
}

#[test]
fn every_program_is_run() {
    let files = std::fs::read_dir(source("tests/cpp")).unwrap();
    let names = files.filter_map(|f| Some(f.unwrap().file_name().to_str()?.strip_suffix(".cpp")?.to_string()));
    assert_eq!(names.collect::<BTreeSet<_>>(), PROGRAMS.iter().map(ToString::to_string).collect());
}

#[test]
fn every_header_compiles_alone() {
    let dir = out("headers");
    for header in headers() {
        let file = dir.join("alone.cpp");
        std::fs::write(&file, format!("#include <{header}>\n#include <{header}>\n")).unwrap();
        for (name, standard) in COMPILERS.iter().zip(STANDARDS) {
            if all_here(&[name]) {
                succeed(compiler(name, &[standard, "-fsyntax-only"]).arg(&file));
            }
        }
    }
}

#[test]
fn units_of_unlike_standards_and_modes_link() {
    let dir = out("units");
    let call = "auto text = kvlink::Agent().address();\n\
                return text.ok() || kvlink::check(*&ls, ls, 0).ok() ? 1 : 0;";
    let unit = |name: &str| {
        format!("#include <kvlink.hpp>\nint {name}() {{ kvlink::Span<const kvlink::Layout> ls; {call} }}\n")
    };
    std::fs::write(dir.join("a.cpp"), unit("a")).unwrap();
    std::fs::write(dir.join("b.cpp"), unit("b") + "int a();\nint main() { return a() + b(); }\n").unwrap();
    let object = |name: &str, flags: &[&str]| {
        let object = dir.join(name).with_extension("o");
        succeed(compiler("g++", flags).arg("-c").arg(dir.join(name)).arg("-o").arg(&object));
        object
    };
    let a = object("a.cpp", &["-std=c++17", "-fno-exceptions"]);
    let b = object("b.cpp", &["-std=c++20", "-DKVLINK_EXCEPTIONS"]);
    succeed(&mut Command::new(link(compiler("g++", &[]), &[a, b], &dir, "units")));
}

#[test]
fn mistakes_do_not_compile() {
    let dir = out("mistakes");
    let function = |i: usize, body: &str| {
        let used = "(void)a; (void)o; (void)t;";
        format!("void f{i}(kvlink::Agent& a, kvlink::OfferId o, kvlink::TransferId t) {{ {used} {body} }}\n")
    };
    // What is right, what is wrong, and what the compiler then says.
    let pairs = [
        ("(void)a.failed_blocks(t, 0);", "(void)a.failed_blocks(o, 0);", "OfferKind"),
        ("(void)a.ticket(o);", "(void)a.ticket(t);", "TransferKind"),
        ("(void)a.cancel(t);", "(void)a.cancel(kvlink::PeerId(1));", "cancel"),
        ("t = kvlink::TransferId(5);", "t = 5;", "operator="),
        ("kvlink::Agent b = std::move(a);", "kvlink::Agent b = a;", "deleted"),
        ("a = kvlink::Agent();", "kvlink::Agent b; a = b;", "deleted"),
        ("kvlink::SharedMemory m, n = std::move(m);", "kvlink::SharedMemory m, n = m;", "deleted"),
        ("(void)a.disconnect({});", "a.disconnect({});", "nodiscard"),
        ("(void)a.poll(0);", "const kvlink::Agent& c = a; (void)c.poll(0);", "discards qualifiers"),
        (
            "kvlink::Blocks b; kvlink::Offer r; r.blocks = b;",
            "kvlink::Offer r; r.blocks = kvlink::Blocks();",
            "deleted",
        ),
        ("std::vector<uint32_t> v; kvlink::Blocks b(v);", "std::vector<int> v; kvlink::Blocks b(v);", "no matching"),
        ("uint32_t i[1] = {}; kvlink::Blocks b(i);", "uint32_t i = 0; kvlink::Blocks b(i);", "no matching"),
        ("(void)*a.address();", "(void)a.address().value();", "kvlink::Exception"),
        (
            "kvlink::Group g; g.kind = kvlink::GroupKind::ring;",
            "kvlink::Group g; g.kind = kvlink::Reach::full;",
            "Reach",
        ),
    ];
    let right: String = pairs.iter().enumerate().map(|(i, (right, ..))| function(i, right)).collect();
    compiles(&dir, &right).unwrap_or_else(|e| panic!("{e}"));
    for (i, (_, wrong, says)) in pairs.into_iter().enumerate() {
        let error = compiles(&dir, &function(i, wrong)).expect_err(wrong);
        assert!(error.contains(says), "{wrong}\n{error}");
    }
}

#[test]
fn the_example_of_the_document_compiles() {
    let doc = std::fs::read_to_string(source("docs/cpp.md")).unwrap();
    let code = doc.split("```cpp\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let file = out("document").join("document.cpp");
    let given = "std::string_view json, void* cache, std::size_t cache_bytes, kvlink::PeerId peer, std::string_view ticket, \
                 const std::vector<std::uint32_t>& ids, int timeout_ms, void (*resume_request)()";
    std::fs::write(&file, format!("#include <kvlink.hpp>\nvoid f({given})\n{{\n{code}}}\n")).unwrap();
    succeed(compiler("g++", &["-std=c++17", "-DKVLINK_EXCEPTIONS", "-fsyntax-only"]).arg(file));
}

#[test]
fn the_missing_value_of_a_result_ends_the_program() {
    let dir = out("misuse");
    for (name, misuse, says) in [
        ("value", "(void)*kvlink::Agent().address();", "agent is NULL"),
        ("arrow", "auto r = kvlink::Agent().address(); (void)r->size();", "agent is NULL"),
        ("error", "(void)kvlink::Result<int>(1).error();", "it has a value"),
        ("success", "(void)kvlink::Result<void>().error();", "it is a success"),
    ] {
        let file = dir.join(name).with_extension("cpp");
        std::fs::write(&file, format!("#include <kvlink.hpp>\nint main() {{ {misuse} }}\n")).unwrap();
        let output = output(&mut Command::new(link(compiler("g++", &["-std=c++17"]), &[file], &dir, name)));
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.starts_with("kvlink: ") && text.contains(says), "{name}: {text}");
    }
}

#[test]
fn every_function_is_called_through_the_layer() {
    let dir = out("functions");
    let mut called = BTreeSet::new();
    for program in PROGRAMS {
        let file = source(&format!("tests/cpp/{program}.cpp"));
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(!text.contains("kvlink_"), "{program}.cpp goes past the layer");
        let exe = link(compiler("g++", &["-std=c++17"]), &[file], &dir, program);
        let symbols = succeed(Command::new("nm").args(["-D", "--undefined-only"]).arg(exe));
        called.extend(symbols.split_whitespace().filter(|w| w.starts_with("kvlink_")).map(ToString::to_string));
    }
    let list = std::fs::read_to_string(source("abi/kvlink.symbols")).unwrap();
    assert_eq!(called, list.lines().map(ToString::to_string).collect());
}

#[test]
fn every_constant_of_the_header_has_its_twin() {
    let header = std::fs::read_to_string(source("include/kvlink.h")).unwrap();
    let enumerators =
        header.lines().filter_map(|l| l.trim().strip_suffix(',')?.split_once(" = ")).map(|(name, _)| name);
    let macros = header.lines().filter_map(|l| l.strip_prefix("#define ")?.split_once(' ')).map(|(name, _)| name);
    let layer = layer();
    let mut count = 0;
    for name in enumerators.chain(macros).filter(|n| n.starts_with("KVLINK_")) {
        assert!(layer.contains(&format!("= {name},\n")) || layer.contains(&format!("= {name};\n")), "{name}");
        count += 1;
    }
    assert!(count > 60, "only {count} constants found");
}

/// The bodies that fill or read a C struct: from each of these marks to the end of the function or class.
fn uses<'a>(layer: &'a str, name: &str) -> Vec<&'a str> {
    let function = ["\n}\n", "\n    }\n"];
    let marks = [
        (format!("{name} c{{}};"), &function[..]),
        (format!("const {name}& c)"), &function[..]),
        (format!("const {name}& f :"), &function[..]),
        (format!("private {name} {{"), &["\n};\n"][..]),
    ];
    let mut found = Vec::new();
    for (mark, ends) in marks {
        for (at, _) in layer.match_indices(&mark) {
            let rest = &layer[at..];
            found.push(&rest[..ends.iter().filter_map(|e| rest.find(e)).min().unwrap()]);
        }
    }
    found
}

/// Whether `body` has this text as a whole word.
fn has_word(body: &str, word: &str) -> bool {
    let part_of_name = |c: char| c == '_' || c.is_alphanumeric();
    body.match_indices(word).any(|(at, _)| !body[at + word.len()..].starts_with(part_of_name))
}

#[test]
fn every_field_of_the_header_is_reached() {
    let header = std::fs::read_to_string(source("include/kvlink.h")).unwrap();
    let layer = layer();
    let mut checked = 0;
    for piece in header.split("typedef struct ").skip(1) {
        let Some((name, body)) = piece.split_once(" {\n") else { continue };
        if name.contains(';') || layer.contains(&format!("= ::{name};")) || layer.contains(&format!("public {name} {{"))
        {
            continue; // opaque, or the C struct itself
        }
        let declarations = body[..body.find("\n}").unwrap()].lines().filter_map(|l| l.trim().strip_suffix(';'));
        let fields: Vec<&str> =
            declarations.map(|d| d.split('[').next().unwrap().rsplit([' ', '*']).next().unwrap()).collect();
        let uses = uses(&layer, name);
        assert!(!uses.is_empty(), "{name} is not used");
        for field in fields.into_iter().filter(|f| *f != "reserved") {
            for body in &uses {
                let reached = ["c", "f", "c()"].iter().any(|c| has_word(body, &format!("{c}.{field}")));
                assert!(reached, "{name}.{field} in\n{body}");
            }
            checked += 1;
        }
    }
    assert!(checked > 120, "only {checked} fields found");
}

#[test]
fn descriptions_mean_the_same_in_c() {
    let dir = out("twin");
    let mut cc = Command::new("cc");
    cc.current_dir(root()).args(["-std=c99", "-Iinclude", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]);
    let line = |exe: PathBuf| {
        let text = succeed(&mut Command::new(exe));
        text.lines().find(|l| l.starts_with("LAYOUT {")).unwrap_or_else(|| panic!("{text}")).to_string()
    };
    let c = line(link(cc, &[source("tests/cpp/layout_twin.c")], &dir, "c"));
    assert_eq!(line(link(compiler("g++", &["-std=c++17"]), &[source("tests/cpp/layout.cpp")], &dir, "cpp")), c);
}

/// Builds an example in C++.
fn example(dir: &Path, name: &str) -> PathBuf {
    let sources = [source(&format!("examples/cpp/{name}.cpp")), source("examples/cpp/common.cpp")];
    let sources = if name == "minimal" { &sources[..1] } else { &sources[..] };
    link(compiler("g++", &["-std=c++17", "-O1"]), sources, dir, name)
}

#[test]
fn the_minimal_example_moves_its_bytes() {
    let program = example(&out("minimal"), "minimal");
    assert_eq!(succeed(&mut Command::new(program)), "all bytes are right\n");
}

#[test]
fn example_engines_of_both_languages_understand_one_another() {
    let (c, cpp) = (out("engines-c"), out("engines-cpp"));
    let in_c = |name: &str| {
        let mut cc = Command::new("cc");
        cc.current_dir(root()).args(["-std=c99", "-Iinclude"]);
        link(cc, &[source(&format!("examples/c/{name}.c")), source("examples/c/common.c")], &c, name)
    };
    let (prefill, decode) = (example(&cpp, "prefill"), example(&cpp, "decode"));
    let mixed = |p: &Path, d: &Path| {
        programs::move_a_request_both_ways(|| Command::new(p), || Command::new(d), &cpp);
    };
    mixed(&prefill, &decode);
    mixed(&prefill, &in_c("decode"));
    mixed(&in_c("prefill"), &decode);
}

#[test]
fn the_cost_programs_print_three_figures() {
    let dir = out("cost");
    let mut cc = Command::new("cc");
    cc.current_dir(root()).args(["-std=c99", "-Iinclude", "-O2", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]);
    let programs = [
        link(cc, &[source("benches/bindings/cost.c")], &dir, "c"),
        link(compiler("g++", &["-std=c++17", "-O2"]), &[source("benches/bindings/cost.cpp")], &dir, "cpp"),
    ];
    for program in programs {
        let text = succeed(&mut Command::new(program));
        let figures: Vec<(&str, f64)> =
            text.lines().map(|l| l.split_once(' ').unwrap()).map(|(n, v)| (n, v.parse().unwrap())).collect();
        assert_eq!(figures.iter().map(|(n, _)| *n).collect::<Vec<_>>(), ["call", "poll", "blocks"]);
        assert!(figures.iter().all(|(_, ns)| *ns > 0.0), "{text}");
    }
}
