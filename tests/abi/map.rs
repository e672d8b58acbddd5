//! The version script.

use std::collections::BTreeSet;

/// One version and what it adds.
#[derive(Clone, Debug, PartialEq)]
pub struct Stanza {
    pub name: String,
    pub symbols: BTreeSet<String>,
    pub parent: Option<String>,
}

/// Reads `NAME { global: a; b; local: *; } PARENT;`, one stanza after the other, each inheriting the one before.
pub fn parse(text: &str) -> Result<Vec<Stanza>, String> {
    let mut stanzas: Vec<Stanza> = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (name, tail) = rest.split_once('{').ok_or(format!("no stanza in {rest:?}"))?;
        let (body, tail) = tail.split_once('}').ok_or(format!("{name:?} does not end"))?;
        let (parent, tail) = tail.split_once(';').ok_or(format!("no semicolon after {name:?}"))?;
        let globals = body.trim().strip_prefix("global:").ok_or(format!("{name:?} has no global symbols"))?;
        let (globals, locals) = globals.split_once("local:").unwrap_or((globals, ""));
        let symbols = globals.split(';').map(|s| s.trim().to_string()).filter(|s| !s.is_empty()).collect();
        let parent = Some(parent.trim().to_string()).filter(|p| !p.is_empty());
        if parent.as_ref() != stanzas.last().map(|s| &s.name) {
            return Err(format!("{name:?} inherits {parent:?}, not the stanza before it"));
        }
        if (locals.trim() == "*;") != stanzas.is_empty() {
            return Err(format!("{name:?}: the first stanza, and no other, has `local: *;`"));
        }
        stanzas.push(Stanza { name: name.trim().to_string(), symbols, parent });
        rest = tail.trim();
    }
    Ok(stanzas)
}

/// Stanzas of a release that are not in the current map as they were.
pub fn changed(released: &[Stanza], current: &[Stanza]) -> Vec<String> {
    let mut faults = Vec::new();
    for old in released {
        match current.iter().find(|s| s.name == old.name) {
            None => faults.push(format!("{} is gone", old.name)),
            Some(new) if new != old => faults.push(format!("{} was released as {old:?} and is {new:?}", old.name)),
            Some(_) => {}
        }
    }
    faults
}

const RELEASED: &str = "V_1 { global: a; b; local: *; };";

#[test]
fn a_released_stanza_does_not_change() {
    let old = parse(RELEASED).unwrap();
    let against = |text: &str| changed(&old, &parse(text).unwrap()).len();
    assert_eq!(against(RELEASED), 0);
    assert_eq!(against("V_1 { global: a; b; local: *; }; V_2 { global: c; } V_1;"), 0);
    assert_eq!(against("V_1 { global: a; b; c; local: *; };"), 1, "a symbol was added to it");
    assert_eq!(against("V_1 { global: a; local: *; }; V_2 { global: b; } V_1;"), 1, "a symbol moved on");
    assert_eq!(against("V_2 { global: a; b; local: *; };"), 1, "it was renamed");
}

#[test]
fn stanzas_form_a_chain() {
    for text in
        ["V_1 { global: a; };", "V_1 { global: a; local: *; }; V_2 { global: b; };", "V_1 { global: a; local: *;"]
    {
        assert!(parse(text).is_err(), "{text}");
    }
}
