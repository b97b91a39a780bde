//! Commands that people copy into a shell.

use std::path::Path;

/// A path as a shell reads it back: as it is where that is plain, else in quotes.
pub(crate) fn quoted(path: &Path) -> String {
    let path = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@%".contains(c);
    match !path.is_empty() && path.chars().all(plain) {
        true => path,
        false => format!("'{}'", path.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_back_the_path_that_was_meant() {
        for path in ["/srv/ink", "/my data/it's $HOME", "/a\"b`c", "/é", ""] {
            let command = format!("printf %s {}", quoted(Path::new(path)));
            let mut shell = std::process::Command::new("sh");
            let output = shell.args(["-c", &command]).output().unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), path);
        }
        assert_eq!(quoted(Path::new("/srv/.ink-1")), "/srv/.ink-1");
    }
}
