//! DEAD: what was given up.

use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use bytes::Bytes;
use contract::TenantId;
use contract::task::DeadLetter;
use prost::Message as _;

use crate::{TaskLog, TaskLogError};

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
        const PROBLEM: &str = "a letter is TENANT.TASK, TENANT.TASK.intake or TENANT.TASK.webhook, or a number if it cannot be decoded, \
                               as a list has it";
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

/// How a letter is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LetterName {
    /// By its name.
    Id(LetterId),
    /// One that cannot be decoded, by its place in DEAD.
    Place(u64),
}

impl fmt::Display for LetterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => write!(f, "{id}"),
            Self::Place(sequence) => write!(f, "{sequence}"),
        }
    }
}

impl FromStr for LetterName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse() {
            Ok(sequence) => Ok(Self::Place(sequence)),
            Err(_) => Ok(Self::Id(text.parse()?)),
        }
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

/// One that cannot be decoded, and where it lies.
#[derive(Debug, Clone)]
pub struct Undecodable {
    /// Its place in DEAD.
    pub sequence: u64,
    /// Its subject there.
    pub subject: String,
    /// Its name, where it has one that a letter has.
    pub id: Option<LetterId>,
    /// When the broker stored it.
    pub at: Option<SystemTime>,
    /// What is wrong with it.
    pub problem: String,
    /// What it is.
    pub payload: Bytes,
}

/// What lies in DEAD.
pub type Found = Result<Letter, Undecodable>;

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
            // With what has no letter's name.
            None if self.tenant.is_none() => format!("{SUBJECT}>"),
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
    ) -> Result<(Vec<Found>, Option<u64>), TaskLogError> {
        let filter = wanted.filter();
        let events = self.dead.from_sequence(&filter, from, TOGETHER).await?;
        let next = events.last().map(|event| event.sequence + 1);
        Ok((events.iter().map(found).collect(), next))
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
    /// When the broker does not answer.
    pub async fn letter(&self, name: &LetterName) -> Result<Option<Found>, TaskLogError> {
        let event = match name {
            LetterName::Id(id) => self.dead.last(&format!("{SUBJECT}{id}")).await?,
            LetterName::Place(sequence) => {
                let all = format!("{SUBJECT}>");
                let mut events = self.dead.from_sequence(&all, *sequence, 1).await?;
                events.pop().filter(|event| event.sequence == *sequence)
            }
        };
        Ok(event.as_ref().map(found))
    }

    /// Removes what lies at a place in DEAD, and none that was written at its subject since; true when this did it. One that is gone is no
    /// error.
    ///
    /// # Errors
    /// When the broker does not confirm.
    pub async fn remove_letter(&self, sequence: u64) -> Result<bool, TaskLogError> {
        Ok(self.dead.remove(sequence).await?)
    }
}

fn found(event: &messaging::Event) -> Found {
    let sequence = event.sequence;
    let name = event.subject.strip_prefix(SUBJECT).unwrap_or_default();
    let id: Option<LetterId> = name.parse().ok();
    let says = DeadLetter::decode(event.payload.clone());
    let problem = match (&id, says) {
        (Some(id), Ok(says)) => {
            let id = id.clone();
            return Ok(Letter { id, sequence, says });
        }
        (Some(_), Err(error)) => error.to_string(),
        (None, _) => "its subject is not a letter's".to_owned(),
    };
    Err(Undecodable {
        sequence,
        subject: event.subject.clone(),
        id,
        at: event.stored_at(),
        problem,
        payload: event.payload.clone(),
    })
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
        assert_eq!("17".parse::<LetterName>(), Ok(LetterName::Place(17)));
        let id = task.parse::<LetterId>().unwrap();
        assert_eq!(task.parse::<LetterName>(), Ok(LetterName::Id(id)));
        assert!("acme.*".parse::<LetterName>().is_err());
    }
}
