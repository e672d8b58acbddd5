//! A function of the header as a page of section 3.

use crate::cheader::{Function, definition, functions, meaning};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// All pages, by file name.
pub fn all(header: &str) -> BTreeMap<String, String> {
    let functions = functions(header);
    let names: BTreeSet<&str> = functions.iter().map(|f| f.name.as_str()).collect();
    functions.iter().map(|f| (format!("{}.3", f.name), page(header, f, &names))).collect()
}

fn page(header: &str, function: &Function, names: &BTreeSet<&str>) -> String {
    let Function { name, declaration, comment } = function;
    let paragraphs: Vec<String> = comment.split("\n\n").map(|p| p.replace('\n', " ")).collect();
    let (errors, description): (Vec<&String>, Vec<&String>) =
        paragraphs.iter().partition(|p| p.starts_with("Errors: "));

    let mut out = String::from(".\\\" Written by tests/man from include/kvlink.h.\n");
    let _ = writeln!(out, ".TH {name} 3 \"\" kvlink \"kvlink manual\"");
    let _ = writeln!(out, ".SH NAME\n{name} \\- {}", escape(&summary(&paragraphs[0])));
    let _ = writeln!(out, ".SH SYNOPSIS\n.nf\n.B #include <kvlink.h>\n.PP");
    for line in declaration.lines() {
        let _ = writeln!(out, "{}", escape(line));
    }
    // The last line is the end of the declaration.
    out.truncate(out.trim_end().len());
    out.push_str(";\n.fi\n.SH DESCRIPTION\n");
    for (i, paragraph) in description.iter().enumerate() {
        let _ = writeln!(out, "{}{}", if i == 0 { "" } else { ".PP\n" }, inline(paragraph, names));
    }
    for definition in structs(declaration).into_iter().filter_map(|s| definition(header, s)) {
        let _ = writeln!(out, ".PP\n.nf\n{}\n.fi", escape(definition));
    }
    out.push_str(".SH RETURN VALUE\n");
    if declaration.starts_with("kvlink_status_t ") {
        let _ = writeln!(
            out,
            "{}",
            inline("KVLINK_OK, or a negative status that kvlink_last_error has a text for.", names)
        );
    } else {
        out.push_str("The string; it is never freed.\n");
    }
    for text in errors {
        let _ = write!(out, ".SH ERRORS\n{}", error_list(header, text, names));
    }
    let mentioned = words(comment).filter(|w| names.contains(w) && w != name).collect::<BTreeSet<_>>();
    out.push_str(".SH SEE ALSO\n");
    for other in mentioned {
        let _ = writeln!(out, ".BR {other} (3),");
    }
    out.push_str(".BR kvlink (7)\n");
    out
}

/// The first clause, as a phrase.
fn summary(paragraph: &str) -> String {
    let end = paragraph.find(". ").into_iter().chain(paragraph.find("; ")).min().unwrap_or(paragraph.len());
    let sentence = paragraph[..end].trim_end_matches('.');
    let mut letters = sentence.chars();
    let first = letters.next().map(|c| c.to_ascii_lowercase());
    first.into_iter().chain(letters).filter(|c| *c != '`').collect()
}

/// Every status of an `Errors:` paragraph with what it means in general, and here.
fn error_list(header: &str, paragraph: &str, names: &BTreeSet<&str>) -> String {
    let text = paragraph.strip_prefix("Errors: ").expect("the caller looked for it");
    if !text.starts_with("KVLINK_E_") {
        return format!("{}\n", inline(&capitalized(text), names));
    }
    let mut out = String::new();
    for piece in text.split("KVLINK_E_").skip(1) {
        let end = piece.find(|c: char| c != '_' && !c.is_ascii_uppercase()).unwrap_or(piece.len());
        let status = format!("KVLINK_E_{}", &piece[..end]);
        let general = meaning(header, &status).unwrap_or_else(|| panic!("the header has no {status}"));
        let here = piece[end..].trim_start_matches([',', '.', ' ']).trim_end_matches([',', '.', ' ']);
        let here = here.strip_prefix('(').and_then(|h| h.strip_suffix(')')).unwrap_or(here);
        let _ = writeln!(out, ".TP\n.B {status}\n{}", inline(&general, names));
        if !here.is_empty() {
            let _ = writeln!(out, "Here: {}.", inline(here, names));
        }
    }
    out
}

fn capitalized(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|c| c.to_ascii_uppercase()).into_iter().chain(letters).collect()
}

/// Structs that a declaration has pointers to.
fn structs(declaration: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for piece in declaration.split("struct ").skip(1) {
        let name = words(piece).next().unwrap_or_default();
        if !found.contains(&name) {
            found.push(name);
        }
    }
    found
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|w| !w.is_empty())
}

/// A paragraph: arguments (in backticks) in italics; functions, types and values in bold.
fn inline(text: &str, names: &BTreeSet<&str>) -> String {
    let mut out = String::new();
    for (i, piece) in text.split('`').enumerate() {
        if i % 2 == 1 {
            let _ = write!(out, "\\fI{}\\fR", escape(piece));
            continue;
        }
        for word in piece.split_inclusive(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
            let name = word.trim_end_matches(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            let rest = escape(&word[name.len()..]);
            let _ = match name {
                n if names.contains(n) => write!(out, "\\fB{n}\\fR(3){rest}"),
                n if n.starts_with("KVLINK_") || n.starts_with("kvlink_") => write!(out, "\\fB{n}\\fR{rest}"),
                n => write!(out, "{n}{rest}"),
            };
        }
    }
    out.trim().to_string()
}

fn escape(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    // A line that begins with a dot or an apostrophe would be a request.
    text.replace("\n.", "\n\\&.").replace("\n'", "\n\\&'")
}
