//! What stands below the help of commands: lines to copy. A test reads each of them as the command line does.

pub(crate) const INKSTONE: &str = "\
To begin with:
  inkstone up                                    # in the repository; until Ctrl-C
  inkstone generate \"a 3d cat\" -o cat.png        # in another terminal, in the same folder
  inkstone inspect cat.png

Exit codes: 0 done, 1 failed otherwise, 2 not understood or refused as invalid, 3 the task failed, 4 it was cancelled, 5 no platform
answers, 6 nothing was left to cancel.";

pub(crate) const UP: &str = "\
Examples:
  inkstone up
  inkstone up --listen 127.0.0.1:9000 --data /srv/inkstone --model /srv/models/sdxl
  inkstone up --log warn,gpu_worker=debug

Settings of the services are variables here: INKSTONE_GPU_WORKER__WORKER__SLOTS=1 (docs/SETTINGS.md).";

pub(crate) const GENERATE: &str = "\
Examples:
  inkstone generate \"a 3d cat on a blue background\" -o cat.png --seed 7
  inkstone generate \"a flat fox\" -n 3 -o fox.webp --size 128x128 --steps 20
  inkstone generate \"a castle\" --url https://images.example.com --key KEY";

pub(crate) const KEYS: &str = "\
Examples:
  inkstone keys create --tenant acme --prefix test- --name \"nightly build\"
  inkstone keys list --tenant acme
  inkstone keys revoke APP_KEY";

pub(crate) const POLICIES: &str = "\
Examples:
  inkstone policies list
  inkstone policies set gold- --models '*' --requests-per-second 100 --tier priority
  inkstone policies set test- --images-per-day 1000 --tasks-running 8
  inkstone policies set test- --images-per-day none";

pub(crate) const MODELS: &str = "\
Examples:
  inkstone models list
  inkstone models register /srv/models/sdxl
  inkstone models traffic sdxl 1=90 2=10";

pub(crate) const DEAD: &str = "\
Examples:
  inkstone dead list --kind webhook --since 2h
  inkstone dead show ID
  inkstone dead retry ID
  inkstone dead list --json";

pub(crate) const AUDIT: &str = "\
Examples:
  inkstone audit verify
  inkstone audit verify --files /mnt/copy/audit --known-gaps 1
  inkstone audit show TASK";

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::Cli;

    /// As a shell splits them, as far as examples need it.
    fn words(line: &str) -> Vec<String> {
        let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
        let code = line.split_once(" #").map_or(line, |(code, _)| code);
        for c in code.chars() {
            match (c, quote) {
                (c, Some(open)) if c == open => quote = None,
                ('"' | '\'', None) => quote = Some(c),
                (' ', None) => words.push(std::mem::take(&mut word)),
                (c, _) => word.push(c),
            }
        }
        words.push(word);
        words.retain(|word| !word.is_empty());
        words
    }

    #[test]
    fn every_example_is_understood() {
        let all = [INKSTONE, UP, GENERATE, KEYS, POLICIES, MODELS, DEAD, AUDIT];
        for text in all {
            let lines = text.lines().filter(|line| line.starts_with("  inkstone "));
            let mut count = 0;
            for line in lines {
                let understood = Cli::try_parse_from(words(line));
                assert!(understood.is_ok(), "{line}: {understood:?}");
                count += 1;
            }
            assert!(count > 0, "{text}");
        }
    }
}
