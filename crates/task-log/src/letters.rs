//! DEAD: what was given up.

use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use contract::TenantId;
use contract::task::DeadLetter;

use crate::{TaskLog, TaskLogError, decode};

const SUBJECT: &str = "inkstone.dead.";
/// Letters that are read together: each holds a message of up to some hundred KiB.
const TOGETHER: usize = 64;
/// Bytes of one part of a letter's name; those that there are have fewer.
const MAX_PART: usize = 128;

/// What was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LetterKind {
    /// A task.
    Task,
    /// A submission over NATS.
    Intake,
    /// A webhook.
    Webhook,
}

impl LetterKind {
    /// What stands in letters, and ends their subjects; nothing for a task.
    pub fn word(self) -> &'static str {
        match self {
            Self::Task => "",
            Self::Intake => "intake",
            Self::Webhook => "webhook",
        }
    }
}

/// A letter's name: `<tenant>.<task>`, and for what is no task `.<kind>` behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LetterId {
    text: String,
    kind: LetterKind,
}

impl LetterId {
    /// What was given up.
    pub fn kind(&self) -> LetterKind {
        self.kind
    }

    /// Whose it was, as it says.
    pub fn tenant(&self) -> &str {
        let end = self.text.find('.').unwrap_or(self.text.len());
        &self.text[..end]
    }
}

impl fmt::Display for LetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for LetterId {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const PROBLEM: &str =
            "a letter is TENANT.TASK, TENANT.TASK.intake or TENANT.TASK.webhook, as a list has it";
        let parts: Vec<&str> = text.split('.').collect();
        let kind = match parts[..] {
            [_, _] => LetterKind::Task,
            [_, _, "intake"] => LetterKind::Intake,
            [_, _, "webhook"] => LetterKind::Webhook,
            _ => return Err(PROBLEM),
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        let good = |part: &&str| (1..=MAX_PART).contains(&part.len()) && part.chars().all(plain);
        if !parts.iter().all(good) {
            return Err(PROBLEM);
        }
        let text = text.to_owned();
        Ok(Self { text, kind })
    }
}

/// A letter and where it lies.
#[derive(Debug, Clone)]
pub struct Letter {
    /// Its name.
    pub id: LetterId,
    /// Its place in DEAD.
    pub sequence: u64,
    /// What it says.
    pub says: DeadLetter,
}

/// Which letters.
#[derive(Debug, Clone, Default)]
pub struct WantedLetters {
    /// Only this tenant's.
    pub tenant: Option<TenantId>,
    /// Only these.
    pub kind: Option<LetterKind>,
}

impl WantedLetters {
    fn filter(&self) -> String {
        let tenant = self.tenant.as_ref().map_or("*", TenantId::as_str);
        match self.kind {
            None => format!("{SUBJECT}{tenant}.>"),
            Some(LetterKind::Task) => format!("{SUBJECT}{tenant}.*"),
            Some(kind) => format!("{SUBJECT}{tenant}.*.{}", kind.word()),
        }
    }
}

impl TaskLog {
    /// Some letters from a place in DEAD on, oldest first, and the place behind the last one that was looked at: `None` when there are
    /// no more.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn letters(
        &self,
        wanted: &WantedLetters,
        from: u64,
    ) -> Result<(Vec<Letter>, Option<u64>), TaskLogError> {
        let filter = wanted.filter();
        let events = self.dead.from_sequence(&filter, from, TOGETHER).await?;
        let next = events.last().map(|event| event.sequence + 1);
        // One that cannot be decoded keeps nobody from the others.
        let letters = events
            .iter()
            .filter_map(|event| letter(event).ok().flatten());
        Ok((letters.collect(), next))
    }

    /// The place in DEAD of the first of these letters that was written at `time` or later; `None` where there is none.
    ///
    /// # Errors
    /// When the broker does not answer.
    pub async fn letters_since(
        &self,
        wanted: &WantedLetters,
        time: SystemTime,
    ) -> Result<Option<u64>, TaskLogError> {
        Ok(self.dead.sequence_at(&wanted.filter(), time).await?)
    }

    /// One letter.
    ///
    /// # Errors
    /// When the broker does not answer, or the letter cannot be decoded.
    pub async fn letter(&self, id: &LetterId) -> Result<Option<Letter>, TaskLogError> {
        let found = self.dead.last(&format!("{SUBJECT}{id}")).await?;
        found.as_ref().map_or(Ok(None), letter)
    }

    /// Removes a letter, and none that was written in its place since; true when this did it. One that is gone is no error.
    ///
    /// # Errors
    /// When the broker does not confirm.
    pub async fn remove_letter(&self, letter: &Letter) -> Result<bool, TaskLogError> {
        Ok(self.dead.remove(letter.sequence).await?)
    }
}

/// `None` for what has a name that no letter of ours has.
fn letter(event: &messaging::Event) -> Result<Option<Letter>, TaskLogError> {
    let name = event.subject.strip_prefix(SUBJECT).unwrap_or_default();
    let Ok(id) = name.parse() else {
        return Ok(None);
    };
    Ok(Some(Letter {
        id,
        sequence: event.sequence,
        says: decode("dead letter", &event.payload)?,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_a_list_has_and_never_a_wildcard() {
        let kind = |text: &str| text.parse::<LetterId>().map(|id| id.kind()).ok();
        let task = "acme.0197c5a2-0000-7000-8000-000000000001";
        assert_eq!(kind(task), Some(LetterKind::Task));
        assert_eq!(task.parse::<LetterId>().unwrap().tenant(), "acme");
        let with = |word: &str| kind(&format!("{task}.{word}"));
        assert_eq!(with("intake"), Some(LetterKind::Intake));
        assert_eq!(with("webhook"), Some(LetterKind::Webhook));
        for bad in [
            "",
            "acme",
            "acme.",
            ".x",
            "acme.*",
            "acme.>",
            "*.x",
            "a.b.c",
            "a.b.intake.c",
            "a b.c",
        ] {
            assert_eq!(kind(bad), None, "{bad}");
        }
        assert_eq!(task.parse::<LetterId>().unwrap().to_string(), task);
    }
}
