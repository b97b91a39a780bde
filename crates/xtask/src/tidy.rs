//! Rules about files that a program can check, so that no reviewer has to.

/// The longest file: beyond it there is a second idea in it that wants a file of its own.
const MAX_LINES: usize = 600;
/// Names that say nothing about what is inside, and so draw everything in.
const EMPTY_NAMES: &[&str] = &["common", "core", "utils", "util", "helpers", "manager"];
/// What is left in a file by someone who meant to come back. Written in halves: this file is checked too.
const UNFINISHED: &[&str] = &[
    concat!("to", "do!"),
    concat!("unimple", "mented!"),
    concat!("db", "g!"),
];

/// What is wrong with a Rust file at `path` in the repository.
pub(crate) fn source(path: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let lines = text.lines().count();
    if lines > MAX_LINES {
        found.push(format!(
            "{path}: {lines} lines; split it ({MAX_LINES} at most)"
        ));
    }
    let stem = path.strip_suffix(".rs").unwrap_or(path);
    for name in stem.split('/').filter(|name| EMPTY_NAMES.contains(name)) {
        found.push(format!(
            "{path}: {name} says nothing; name it after what is inside"
        ));
    }
    for (number, line) in text.lines().enumerate() {
        let place = format!("{path}:{}", number + 1);
        for mark in UNFINISHED.iter().filter(|mark| has_word(line, mark)) {
            found.push(format!("{place}: {mark} is left in the code; finish it"));
        }
        if let Some(name) = inline_module(line).filter(|name| EMPTY_NAMES.contains(name)) {
            found.push(format!(
                "{place}: module {name} says nothing; name it after what is inside"
            ));
        }
    }
    let library = path.starts_with("crates/") && path.ends_with("/src/lib.rs");
    if library && path.matches('/').count() == 3 && !text.starts_with("//!") {
        found.push(format!(
            "{path}: begin with `//!`: what the crate is for and what always holds"
        ));
    }
    found
}

/// The module that a line opens, such as `pub(crate) mod name {`.
fn inline_module(line: &str) -> Option<&str> {
    let mut words = line.split_whitespace().skip_while(|w| w.starts_with("pub"));
    if words.next() != Some("mod") || !line.trim_end().ends_with('{') {
        return None;
    }
    words.next()
}

/// Each crate that no row of a table in docs/ARCHITECTURE.md names in backticks.
pub(crate) fn architecture(page: &str, crates: &[String]) -> Vec<String> {
    let rows: Vec<&str> = page.lines().filter(|l| l.starts_with('|')).collect();
    let missing = crates.iter().filter(|name| {
        let name = format!("`{name}`");
        !rows.iter().any(|row| row.contains(&name))
    });
    let sentence = |name| format!("docs/ARCHITECTURE.md: no row of the crate table names `{name}`");
    missing.map(sentence).collect()
}

/// Each external dependency of the workspace that docs/DEPENDENCIES.md does not mention.
pub(crate) fn dependencies(page: &str, manifest: &str) -> Vec<String> {
    let section = manifest
        .lines()
        .skip_while(|line| line.trim() != "[workspace.dependencies]")
        .skip(1)
        .take_while(|line| !line.starts_with('['));
    let names = section.filter_map(|line| {
        let (name, value) = line.split_once('=')?;
        let ours = value.contains("path =");
        (!ours && !line.starts_with('#')).then(|| name.trim())
    });
    let missing = names.filter(|name| !page.lines().any(|line| has_word(line, name)));
    let sentence = |name| format!("docs/DEPENDENCIES.md: why do we need {name}? Add a line");
    missing.map(sentence).collect()
}

/// Whether `line` has `word` with no letter, digit, `_` or `-` right beside it.
fn has_word(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_' || c == '-';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        !before.is_some_and(part) && !after.is_some_and(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tidy_file_passes() {
        let text = "//! What it is for.\n\nmod store;\n\n#[cfg(test)]\nmod tests {\n}\n";
        assert_eq!(source("crates/auth/src/lib.rs", text), Vec::<String>::new());
        // Names that only contain an empty one are names.
        assert!(source("crates/x/src/score.rs", "").is_empty());
        assert!(source("crates/x/src/a.rs", &format!("my_{}(1)", UNFINISHED[0])).is_empty());
    }

    #[test]
    fn each_rule_finds_what_breaks_it() {
        let long = "x\n".repeat(MAX_LINES + 1);
        let unfinished = format!("fn f() {{\n    {}()\n}}\n", UNFINISHED[0]);
        for (path, text, word) in [
            ("crates/a/src/b.rs", long.as_str(), "601 lines"),
            ("crates/a/src/b.rs", &unfinished, "b.rs:2"),
            ("crates/a/src/utils.rs", "", "utils"),
            ("tests/src/common/x.rs", "", "common"),
            ("crates/core/src/main.rs", "", "core"),
            (
                "crates/a/src/b.rs",
                "pub(crate) mod helpers {\n}\n",
                "helpers",
            ),
            ("crates/a/src/lib.rs", "mod b;\n", "//!"),
        ] {
            let found = source(path, text);
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].contains(word), "{found:?}");
        }
    }

    #[test]
    fn a_crate_that_the_table_leaves_out_is_named() {
        let page = "`auth` in prose\n| `gateway` `rpc` | edge |\n";
        let crates = ["auth", "gateway", "rpc"].map(str::to_owned);
        let found = architecture(page, &crates);
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("`auth`"), "{found:?}");
    }

    #[test]
    fn a_dependency_without_a_reason_is_named() {
        let manifest = "[workspace]\nresolver = \"3\"\n[workspace.dependencies]\n# Ours.\n\
                        auth = { path = \"crates/auth\" }\ntower = \"0.5\"\nhex = \"0.4\"\n\n[profile.dev]\nopt-level = 1\n";
        let found = dependencies("* `tower-http`: layers\n* `hex`: digests\n", manifest);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("tower?"), "{found:?}");
    }
}
