//! Files of records: JSON Lines, and at the end a line that sums the file up.

use serde::{Deserialize, Serialize};

use crate::{Chain, Head, Line, LineError};

/// The last line of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Footer {
    /// Number of the first record.
    pub first_sequence: u64,
    /// Number of the last record.
    pub last_sequence: u64,
    /// Records in the file.
    pub count: u64,
    /// The hash that the first record names as the one before it.
    pub first_prev_hash: String,
    /// The last record's hash.
    pub last_hash: String,
}

/// A footer's line.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FooterLine {
    footer: Footer,
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It holds bytes that no record has.
    #[error("it is not UTF-8: it was changed")]
    Text,
    /// It was cut off, or is empty.
    #[error("it does not end with a line that sums it up: it was cut off")]
    NoFooter,
    /// The last line does not fit the records.
    #[error("its last line does not sum up its records: one of them was changed")]
    Footer,
    /// A record is wrong.
    #[error("record in line {line}")]
    Record {
        /// Which line, from 1 on.
        line: usize,
        /// What is wrong.
        #[source]
        source: LineError,
    },
}

/// A file that is written line by line.
#[derive(Debug)]
pub struct FileWriter {
    before: Head,
    chain: Chain,
    text: String,
    lines: usize,
}

impl FileWriter {
    /// An empty one. `before` is where the chain stands in front of it.
    pub fn after(before: Head) -> Self {
        Self::with_room(before, 0)
    }

    /// The same, with room for so many bytes: while a text grows by itself there are two of it, one of them with room for twice as much.
    pub fn with_room(before: Head, bytes: usize) -> Self {
        Self {
            chain: Chain::after(before.clone()),
            before,
            text: String::with_capacity(bytes),
            lines: 0,
        }
    }

    /// Adds a line, without its line break.
    ///
    /// # Errors
    /// When it does not continue the chain.
    pub fn line(&mut self, line: &str) -> Result<(), FileError> {
        self.lines += 1;
        self.chain.pass(line).map_err(at(self.lines))?;
        self.text.push_str(line);
        self.text.push('\n');
        Ok(())
    }

    /// Number of the first record.
    pub fn first_sequence(&self) -> u64 {
        self.before.sequence + 1
    }

    /// Where the chain stands behind the last line.
    pub fn head(&self) -> &Head {
        self.chain.head()
    }

    /// The bytes of the file.
    ///
    /// # Errors
    /// [`FileError::NoFooter`] of no lines at all.
    pub fn finish(mut self) -> Result<Vec<u8>, FileError> {
        let footer = footer(&self.before, self.chain.head()).ok_or(FileError::NoFooter)?;
        self.text.push_str(&footer);
        Ok(self.text.into_bytes())
    }
}

/// Checks a file that continues `chain`, and hands each record to `see`.
///
/// # Errors
/// When it does not, or was changed in any byte; the chain stands behind the last good record.
pub fn check(chain: &mut Chain, data: &[u8], mut see: impl FnMut(Line)) -> Result<(), FileError> {
    let text = std::str::from_utf8(data).map_err(|_| FileError::Text)?;
    let before = chain.head().clone();
    let body = text.strip_suffix('\n').ok_or(FileError::NoFooter)?;
    let (records, last) = body.rsplit_once('\n').ok_or(FileError::NoFooter)?;
    for (index, line) in records.split('\n').enumerate() {
        see(chain.follow(line).map_err(at(index + 1))?);
    }
    let expected = footer(&before, chain.head()).ok_or(FileError::NoFooter)?;
    // Made anew and compared as bytes: nothing in it can be changed unseen.
    if expected.strip_suffix('\n') != Some(last) {
        return Err(FileError::Footer);
    }
    Ok(())
}

/// Where the chain stood in front of a file's first record, as that record says.
///
/// # Errors
/// When the first line is no record.
pub fn begins_after(data: &[u8]) -> Result<Head, FileError> {
    let text = std::str::from_utf8(data).map_err(|_| FileError::Text)?;
    let line = Line::read(text.lines().next().unwrap_or_default()).map_err(at(1))?;
    Ok(Head {
        sequence: line.sequence.saturating_sub(1),
        hash: line.prev_hash,
    })
}

fn at(line: usize) -> impl FnOnce(LineError) -> FileError {
    move |source| FileError::Record { line, source }
}

fn footer(before: &Head, after: &Head) -> Option<String> {
    let count = after.sequence.checked_sub(before.sequence)?;
    let footer = Footer {
        first_sequence: before.sequence + 1,
        last_sequence: after.sequence,
        count,
        first_prev_hash: before.hash.clone(),
        last_hash: after.hash.clone(),
    };
    let line = serde_json::to_string(&FooterLine { footer }).ok()?;
    (count > 0).then(|| line + "\n")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Content, Event};

    fn content(number: u64) -> Content {
        Content {
            recorded: "2026-01-02T03:04:05Z".to_owned(),
            source: number,
            log: String::new(),
            tenant: "acme".to_owned(),
            task: format!("task-{number} \"é\""),
            event: Event::Unreadable {
                sha256: "ab".to_owned(),
            },
        }
    }

    fn lines(chain: &mut Chain, count: u64) -> Vec<String> {
        (1..=count)
            .map(|n| chain.append(content(n)).unwrap())
            .collect()
    }

    fn write(before: &Head, lines: &[String]) -> Result<Vec<u8>, FileError> {
        let mut file = FileWriter::after(before.clone());
        for line in lines {
            file.line(line)?;
        }
        file.finish()
    }

    fn is_good(data: &[u8]) -> bool {
        let mut chain = Chain::after(Head::genesis());
        check(&mut chain, data, drop).is_ok()
    }

    #[test]
    fn what_was_written_is_read_and_files_continue_each_other() {
        let mut chain = Chain::after(Head::genesis());
        let first = write(&Head::genesis(), &lines(&mut chain, 3)).unwrap();
        let middle = chain.head().clone();
        let second = write(&middle, &lines(&mut chain, 2)).unwrap();
        let mut read = Chain::after(Head::genesis());
        let mut tasks = Vec::new();
        check(&mut read, &first, |line| tasks.push(line.content)).unwrap();
        check(&mut read, &second, |line| tasks.push(line.content)).unwrap();
        assert_eq!(read, chain);
        assert_eq!(tasks[1], content(2));
        assert_eq!(begins_after(&second).unwrap(), middle);
        // Without the first file the second is not the beginning.
        assert!(!is_good(&second));
        assert!(write(&middle, &[]).is_err());
    }

    #[test]
    fn a_removed_a_moved_and_a_repeated_record_are_found() {
        let mut chain = Chain::after(Head::genesis());
        let good = lines(&mut chain, 4);
        let tampered = |change: fn(&mut Vec<String>)| {
            let mut lines = good.clone();
            change(&mut lines);
            let footer = footer(&Head::genesis(), chain.head()).unwrap();
            let text = lines.join("\n") + "\n" + &footer;
            !is_good(text.as_bytes())
        };
        assert!(!tampered(|_| {}));
        assert!(tampered(|lines| drop(lines.remove(1))));
        assert!(tampered(|lines| drop(lines.pop())));
        assert!(tampered(|lines| lines.swap(1, 2)));
        assert!(tampered(|lines| lines.insert(1, lines[0].clone())));
    }

    proptest! {
        #[test]
        fn any_changed_byte_and_any_cut_is_found(
            count in 1u64..5,
            place in any::<prop::sample::Index>(),
            other in 1u8..=255,
        ) {
            let mut chain = Chain::after(Head::genesis());
            let good = write(&Head::genesis(), &lines(&mut chain, count)).unwrap();
            prop_assert!(is_good(&good));
            let place = place.index(good.len());
            let mut changed = good.clone();
            changed[place] ^= other;
            prop_assert!(!is_good(&changed));
            prop_assert!(!is_good(&good[..place]));
            let mut without = good.clone();
            without.remove(place);
            // Of two equal bytes side by side either may go: that is a change as well.
            prop_assert!(!is_good(&without));
        }
    }
}
