//! include/kvlink.h as text: its functions with their comments, its structs and its values.
#![allow(dead_code, reason = "every test that reads the header takes a part of it")]

/// A function as the header declares it.
pub struct Function {
    pub name: String,
    /// Without the semicolon.
    pub declaration: String,
    /// The comment, without its frame.
    pub comment: String,
}

pub fn functions(header: &str) -> Vec<Function> {
    let (_, code) = header.split_once("extern \"C\" {").expect("the functions are in one extern block");
    let mut found = Vec::new();
    for piece in code.split("/**\n").skip(1) {
        let (comment, rest) = piece.split_once("*/\n").expect("comments end");
        let (declaration, _) = rest.split_once(';').expect("declarations end");
        let (before, _) = declaration.split_once('(').expect("functions have parameters");
        let name = before.rsplit([' ', '*']).next().expect("rsplit yields at least one piece").to_string();
        let comment = comment.lines().map(|l| l.trim().trim_start_matches('*').trim()).collect::<Vec<_>>().join("\n");
        found.push(Function { name, declaration: declaration.to_string(), comment: comment.trim().to_string() });
    }
    found
}

/// Structs that begin with struct_size: they may grow at their end.
pub fn growing_structs(header: &str) -> Vec<String> {
    let code = without_comments(header);
    let structs = code.split("typedef struct ").skip(1).filter_map(|s| s.split_once('{'));
    let growing = structs.filter(|(_, fields)| fields.trim_start().starts_with("uint32_t struct_size;"));
    growing.map(|(name, _)| name.trim().to_string()).collect()
}

/// The definition of a struct, with its comments, if the header has one.
pub fn definition<'a>(header: &'a str, name: &str) -> Option<&'a str> {
    let begin = header.find(&format!("typedef struct {name} {{"))?;
    let end = header[begin..].find(&format!("}} {name};"))? + name.len() + 3;
    Some(&header[begin..begin + end])
}

/// What the comment above an enumerator says.
pub fn meaning(header: &str, value: &str) -> Option<String> {
    let (before, _) = header.split_once(&format!("\n    {value} = "))?;
    let (_, comment) = before.rsplit_once("/**")?;
    let comment = comment.strip_suffix("*/").expect("the comment ends where the value begins");
    Some(
        comment
            .lines()
            .map(|l| l.trim().trim_start_matches('*').trim())
            .collect::<Vec<_>>()
            .join(" ")
            .trim()
            .to_string(),
    )
}

fn without_comments(header: &str) -> String {
    header.split("/*").map(|piece| piece.split_once("*/").map_or(piece, |(_, rest)| rest)).collect()
}
