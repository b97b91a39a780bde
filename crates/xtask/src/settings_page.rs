//! docs/SETTINGS.md out of the services' `config.default.toml`, where each setting is explained once.
//!
//! Reads the lines rather than the values, because the comments are what it is after: `[section]`, comment lines
//! above a key, `key = value`, which may go on over several lines inside brackets. A comment is for all keys that
//! follow it without a blank line or another comment; a section whose own comment says it all needs no more.

use std::fmt::Write as _;

const AS_ABOVE: &str = "As above.";

/// One `[section]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Section {
    name: String,
    /// One of several, `[[section]]`: the environment cannot set those.
    repeated: bool,
    about: String,
    settings: Vec<Setting>,
}

/// One `key = value`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Setting {
    key: String,
    default: String,
    about: String,
}

/// The sections of a file, or each line that is not understood or not explained.
pub(crate) fn parse(text: &str) -> Result<Vec<Section>, Vec<String>> {
    let mut sections = vec![section("", false, "")];
    let mut problems = Vec::new();
    let mut comment = String::new();
    // Whether the line before was a setting, which then shares its comment.
    let mut follows = false;
    let mut lines = text.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        let line = line.trim();
        let place = format!("  line {}", number + 1);
        if line.is_empty() {
            comment.clear();
        } else if let Some(words) = line.strip_prefix('#') {
            let space = if comment.is_empty() { "" } else { " " };
            comment.extend([space, words.trim()]);
        } else if let Some((name, repeated)) = header(line) {
            sections.push(section(name, repeated, &std::mem::take(&mut comment)));
        } else if let Some((key, value)) = line.split_once('=') {
            let (mut default, trailing) = split_comment(value);
            while open_brackets(&default) > 0 {
                let Some((_, next)) = lines.next() else { break };
                default.extend([" ", split_comment(next).0.as_str()]);
            }
            let mut about = std::mem::take(&mut comment);
            if about.is_empty() {
                about = trailing;
            }
            if about.is_empty() && follows {
                about = AS_ABOVE.to_owned();
            }
            let key = key.trim().to_owned();
            // There is always the section without a name.
            let Some(section) = sections.last_mut() else {
                break;
            };
            if about.is_empty() && section.about.is_empty() {
                problems.push(format!("{place}: {key} has no comment above it"));
            }
            section.settings.push(Setting {
                key,
                default,
                about,
            });
            follows = true;
            continue;
        } else {
            problems.push(format!("{place}: not understood: {line}"));
        }
        follows = false;
    }
    sections.retain(|section| !section.settings.is_empty());
    if problems.is_empty() {
        Ok(sections)
    } else {
        Err(problems)
    }
}

/// The name in `[name]`, or in `[[name]]`, of which there may be several.
fn header(line: &str) -> Option<(&str, bool)> {
    if let Some(name) = line.strip_prefix("[[") {
        return Some((name.split("]]").next()?, true));
    }
    Some((line.strip_prefix('[')?.split(']').next()?, false))
}

fn section(name: &str, repeated: bool, about: &str) -> Section {
    Section {
        name: name.trim().to_owned(),
        repeated,
        about: about.to_owned(),
        settings: Vec::new(),
    }
}

/// A value, and the comment behind it.
fn split_comment(text: &str) -> (String, String) {
    let (value, comment) = match outside_quotes(text).find(|(_, c)| *c == '#') {
        Some((at, _)) => (&text[..at], &text[at + 1..]),
        None => (text, ""),
    };
    (value.trim().to_owned(), comment.trim().to_owned())
}

fn open_brackets(value: &str) -> i32 {
    let step = |c| match c {
        '[' | '{' => 1,
        ']' | '}' => -1,
        _ => 0,
    };
    outside_quotes(value).map(|(_, c)| step(c)).sum()
}

fn outside_quotes(text: &str) -> impl Iterator<Item = (usize, char)> {
    let mut quote = None;
    text.char_indices().filter(move |(_, c)| match quote {
        Some(open) => {
            if *c == open {
                quote = None;
            }
            false
        }
        None => {
            if matches!(c, '"' | '\'') {
                quote = Some(*c);
            }
            quote.is_none()
        }
    })
}

/// The page for these services: name and sections of each.
pub(crate) fn render(services: &[(String, Vec<Section>)]) -> String {
    let mut page = String::from(
        "<!-- Written by `cargo xtask settings` from crates/*/config.default.toml; change those. -->\n\n\
         # Settings\n\n\
         Every setting of every service, with its default. `--config FILE` overrides defaults key by key, and the\n\
         environment overrides both. A key that no one knows is refused. `inkstone-<service> --defaults` prints the\n\
         same from the binary. In a variable of the environment a list or a table is written as in TOML:\n\
         `[\"a\", \"b\"]`, `[{ name = \"a\" }]`, `{ a = 1 }`.\n",
    );
    for (service, sections) in services {
        // Writing to a string does not fail.
        let _ = write!(page, "\n## inkstone-{service}\n");
        for section in sections {
            let _ = write!(page, "\n{}\n", heading(section));
            if !section.about.is_empty() {
                let _ = write!(page, "\n{}\n", section.about);
            }
            page.push_str("\n| setting | default | what it is for | environment |\n");
            page.push_str("|---|---|---|---|\n");
            for setting in &section.settings {
                let _ = writeln!(
                    page,
                    "| `{}` | {} | {} | {} |",
                    setting.key,
                    cell(&code(&setting.default)),
                    cell(&setting.about),
                    environment(service, section, &setting.key),
                );
            }
        }
    }
    page
}

fn heading(section: &Section) -> String {
    match (section.name.as_str(), section.repeated) {
        ("", _) => "### Outside sections".to_owned(),
        (name, false) => format!("### `[{name}]`"),
        (name, true) => format!("### `[[{name}]]`"),
    }
}

fn environment(service: &str, section: &Section, key: &str) -> String {
    if section.repeated {
        return "by file only".to_owned();
    }
    let path = match section.name.as_str() {
        "" => key.to_owned(),
        name => format!("{}__{key}", name.replace('.', "__")),
    };
    let name = format!("INKSTONE_{}__{path}", service.replace('-', "_"));
    format!("`{}`", name.to_uppercase())
}

fn code(value: &str) -> String {
    format!("`{value}`")
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = r##"# What the file is.

# Where it listens.
[grpc]
# Address and port;
# port 0 takes a free one.
listen = "127.0.0.1:7003"
limit = 5 # In flight.
wait = 6

[models.first]
# A list | of things.
names = [
  "a#b", # one
  "c",
]

[[policy]]
# Whose.
prefix = "prod-"
"##;

    #[test]
    fn a_setting_is_shown_with_default_comment_and_variable() {
        let page = render(&[("model-registry".to_owned(), parse(SAMPLE).unwrap())]);
        for line in [
            "## inkstone-model-registry",
            "### `[grpc]`\n\nWhere it listens.",
            "| `listen` | `\"127.0.0.1:7003\"` | Address and port; port 0 takes a free one. \
             | `INKSTONE_MODEL_REGISTRY__GRPC__LISTEN` |",
            "| `limit` | `5` | In flight. | `INKSTONE_MODEL_REGISTRY__GRPC__LIMIT` |",
            "| `wait` | `6` | As above. | `INKSTONE_MODEL_REGISTRY__GRPC__WAIT` |",
            "| `names` | `[ \"a#b\", \"c\", ]` | A list \\| of things. \
             | `INKSTONE_MODEL_REGISTRY__MODELS__FIRST__NAMES` |",
            "| `prefix` | `\"prod-\"` | Whose. | by file only |",
        ] {
            assert!(page.contains(line), "{line}\nis not in\n{page}");
        }
    }

    #[test]
    fn a_section_that_says_it_all_needs_no_more() {
        let sections = parse("# Where auth is.\n[auth]\nurl = 1\n").unwrap();
        assert_eq!(sections[0].settings[0].about, "");
    }

    #[test]
    fn a_setting_without_a_comment_and_a_line_of_nonsense_are_named() {
        let problems = parse("[a]\n# why\nb = 1\n\nc = 2\nnonsense\n").unwrap_err();
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(
            problems[0].contains("line 5: c has no comment"),
            "{problems:?}"
        );
        assert!(problems[1].contains("line 6"), "{problems:?}");
    }
}
