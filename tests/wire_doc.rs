//! docs/wire-format.md names every message with the code that it travels under, and the limits that hold.

use kvlink::wire::{Message, limit};

const DOC: &str = include_str!("../docs/wire-format.md");

/// Rows of the table that begins with this header: their cells.
fn table(header: &str) -> Vec<Vec<String>> {
    let rows = DOC.lines().skip_while(|l| *l != header).skip(2).take_while(|l| l.starts_with('|'));
    rows.map(|l| l.trim_matches('|').split('|').map(|c| c.trim().to_string()).collect()).collect()
}

/// The name of the message that this code decodes to, if there is one.
fn name(code: u16) -> Option<String> {
    // Long enough for every fixed part; too long for most, which the error says.
    for len in 0..64 {
        let mut body = vec![0u8; len];
        let tries = if code == 1 && len > 4 { 2u8 } else { 1 };
        for purpose in 0..tries {
            if tries == 2 {
                body[4] = purpose + 1;
            }
            if let Ok(m) = Message::decode(code, &body) {
                assert_eq!(m.type_code(), code);
                let text = format!("{m:?}");
                return Some(text.split([' ', '(']).next().unwrap_or("").to_string());
            }
        }
    }
    None
}

/// The shortest body of a message, from the document's field list.
fn shortest(fields: &str) -> usize {
    let size = |f: &str| match f.split_whitespace().next().unwrap_or("") {
        "nothing" => 0,
        "u8" | "flag" => 1,
        "u16" => 2,
        "u32" | "status" | "string" | "bytes" => 4,
        "u64" => 8,
        "Range" => 32,
        "Blocks" => 4,
        "Entry" => 24,
        "then" => 0,
        other => panic!("unknown field type {other:?}"),
    };
    let mut depth = 0;
    let split = |c: char| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        c == ',' && depth == 0
    };
    fields.split(split).map(str::trim).map(size).sum()
}

#[test]
fn the_message_table_is_complete_and_its_fields_are_those_of_the_codec() {
    let rows = table("| code | name | from | body |");
    let codes: Vec<u16> = (0..=u16::from(u8::MAX)).filter(|c| name(*c).is_some()).collect();
    let told: Vec<u16> = rows.iter().map(|r| r[0].parse().expect("a code")).collect();
    assert_eq!(told, codes);
    for row in &rows {
        let code = row[0].parse().expect("a code");
        assert_eq!(Some(row[1].clone()), name(code));
        let n = shortest(&row[3]);
        let mut body = vec![0u8; n];
        if code == 1 {
            body[4] = 1;
        }
        assert!(Message::decode(code, &body).is_ok(), "{}: {n} bytes are not its shortest body", row[1]);
    }
}

#[test]
fn the_limits_are_those_of_the_codec() {
    let rows = table("| what | at most |");
    let told = |what: &str| {
        let row = rows.iter().find(|r| r[0].starts_with(what)).unwrap_or_else(|| panic!("no limit of {what}"));
        let mut words = row[1].split([' ', ';']);
        let n: usize = words.next().and_then(|w| w.parse().ok()).expect("a number");
        match words.next() {
            Some("MiB" | "Mi") => n << 20,
            Some("KiB") => n << 10,
            _ => n,
        }
    };
    assert_eq!(told("body of a frame"), limit::FRAME);
    assert_eq!(told("name"), limit::NAME);
    assert_eq!(told("notification"), limit::PAYLOAD);
    assert_eq!(told("text"), limit::TEXT);
    assert_eq!(told("groups"), limit::GROUPS);
    assert_eq!(told("block ids of one group"), limit::BLOCKS);
    assert_eq!(told("block ids of all"), limit::FRAME / 8);
    assert_eq!(told("ranks"), limit::RANKS);
    assert_eq!(told("transports"), limit::TRANSPORTS);
}
