//! docs/errors.md names every status, in order, with its value and range.

use kvlink::error::Status;

const DOC: &str = include_str!("../docs/errors.md");
const HEADER: &str = include_str!("../include/kvlink.h");

/// Cells of the table of statuses.
fn rows() -> Vec<Vec<&'static str>> {
    let rows = DOC.lines().filter(|l| l.starts_with("| `KVLINK_"));
    rows.map(|l| l.trim_matches('|').split(" | ").map(str::trim).collect()).collect()
}

#[test]
fn the_document_lists_every_status_with_its_value_and_what_to_do() {
    let documented: Vec<i32> = rows().iter().map(|r| r[1].parse().unwrap()).collect();
    let ours: Vec<i32> = Status::ALL.iter().map(|s| s.code()).collect();
    assert_eq!(documented, ours);
    for r in rows() {
        assert_eq!(r.len(), 4, "{r:?}");
        let (name, value) = (r[0].trim_matches('`'), r[1]);
        assert!(HEADER.contains(&format!("    {name} = {value},\n")), "{name} = {value} is not in the header");
        assert!(r[2].ends_with('.') && r[3].ends_with('.'), "{name}: sentences");
    }
}

#[test]
fn every_status_lies_in_a_documented_range() {
    let range = |l: &str| -> Option<(i32, i32)> {
        let (from, to) = l.strip_prefix("| -")?.split_once(" |")?.0.split_once(" to -")?;
        Some((-from.parse::<i32>().ok()?, -to.parse::<i32>().ok()?))
    };
    let ranges: Vec<(i32, i32)> = DOC.lines().filter_map(range).collect();
    assert_eq!(ranges.len(), 6);
    for s in Status::ALL.iter().filter(|s| **s != Status::Ok) {
        assert_eq!(ranges.iter().filter(|(a, b)| *b <= s.code() && s.code() <= *a).count(), 1, "{s:?}");
    }
}
