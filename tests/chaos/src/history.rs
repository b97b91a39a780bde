//! What was seen of a run: by clients, on the broker's subjects, and by whoever did the damage.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, BufWriter, Write as _};
use std::path::Path;
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::plan::Fault;

/// Something that was seen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Milliseconds since the run began, on one monotonic clock.
    pub at_ms: u64,
    /// Who saw it.
    pub who: String,
    /// What it was.
    #[serde(flatten)]
    pub what: What,
}

/// What is seen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum What {
    /// A client submitted.
    Submit {
        /// Whose client.
        tenant: String,
        /// Its idempotency key, if it has one.
        key: Option<String>,
    },
    /// A submission was accepted.
    Accepted {
        /// Whose client.
        tenant: String,
        /// Its idempotency key, if it has one.
        key: Option<String>,
        /// The task.
        task: String,
    },
    /// A submission was refused.
    Refused {
        /// The HTTP status.
        status: u16,
        /// The code of the error.
        code: String,
    },
    /// A request had no answer.
    Unanswered {
        /// What came instead.
        why: String,
    },
    /// A cancel was answered well.
    Cancelled {
        /// The task.
        task: String,
    },
    /// A client saw a task.
    Seen {
        /// The task.
        task: String,
        /// Its phase.
        phase: String,
        /// The digests of its pictures, in order.
        digests: Vec<String>,
    },
    /// An event of the log was heard.
    Event(TaskEvent),
    /// Progress was heard.
    Progress {
        /// The task.
        task: String,
        /// Steps done, over all its pictures.
        step: u32,
    },
    /// A fault began, or ended.
    Strike {
        /// Its place in the plan.
        number: usize,
        /// Whether it begins.
        begins: bool,
        /// Which one.
        of: Fault,
    },
    /// A client's request went otherwise than well.
    Trouble {
        /// What it asked for.
        request: String,
        /// When it began to, as [`Entry::at_ms`].
        since_ms: u64,
        /// The HTTP status, if there was an answer.
        status: Option<u16>,
        /// Whether the answer said when to come back.
        retry_after: bool,
        /// Without an answer: whether the connection was refused or ended, so that the client can tell at once.
        broken: bool,
    },
    /// A client came back to a stream of events.
    Resumed {
        /// Of which task.
        task: String,
        /// The number of the last event that it had.
        last: u64,
        /// The number of the next that it got.
        next: u64,
    },
    /// All processes are restarted, one after the other: this began, or is over.
    Rolling {
        /// Whether it begins.
        begins: bool,
    },
    /// A process that was asked to end has ended.
    Stopped {
        /// Which one.
        instance: String,
        /// How long that took, in milliseconds.
        took_ms: u64,
        /// How long it could take.
        within_ms: u64,
        /// Whether it ended by itself, and need not be killed.
        by_itself: bool,
    },
    /// A process ended that nobody had killed.
    Ended {
        /// Which one.
        instance: String,
        /// How.
        status: String,
    },
}

/// An event of a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskEvent {
    /// Whose task.
    pub tenant: String,
    /// In which lane.
    pub lane: String,
    /// Which task.
    pub task: String,
    /// What happened.
    pub event: Happened,
}

/// What may happen to a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum Happened {
    /// It exists.
    Submitted {
        /// Pictures asked for.
        images: u32,
        /// All that a picture follows from: prompt, seed, steps, size. Tasks with the same have the same pictures.
        look: String,
        /// How long it may wait to begin, in seconds; 0 is for as long as it takes.
        #[serde(default)]
        expires_after_s: u32,
    },
    /// Where it stands.
    State {
        /// True when a worker has it.
        running: bool,
        /// Times that workers took it up.
        attempt: u32,
        /// Which worker has it.
        worker: String,
        /// Which process of that name; empty where an earlier version wrote it.
        #[serde(default)]
        incarnation: String,
        /// Steps at its last checkpoint, over all its pictures.
        checkpoint: Option<u32>,
    },
    /// How it ended.
    Done {
        /// `succeeded`, `failed` or `cancelled`.
        outcome: String,
        /// Of a failure.
        code: String,
        /// Of a success.
        images: Vec<Picture>,
        /// Whether it says when the task was begun.
        #[serde(default)]
        begun: bool,
        /// A digest of the event as it is stored: tells two ends apart.
        digest: String,
    },
    /// What its caller says of it.
    Feedback,
}

/// A picture as the log has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Picture {
    /// Where its bytes are.
    pub key: String,
    /// Their SHA-256, lower-case hex.
    pub sha256: String,
    /// How many there are.
    pub bytes: u64,
}

/// A history that is being written.
pub struct History {
    began: Instant,
    kept: Mutex<Kept>,
}

struct Kept {
    file: BufWriter<File>,
    entries: Vec<Entry>,
}

impl History {
    /// A history that begins now and is kept in `file`, an entry a line.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn create(file: &Path) -> io::Result<Self> {
        let kept = Kept {
            file: BufWriter::new(File::create(file)?),
            entries: Vec::new(),
        };
        Ok(Self {
            began: Instant::now(),
            kept: Mutex::new(kept),
        })
    }

    /// Milliseconds since it began.
    pub fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Notes what `who` saw just now.
    pub fn note(&self, who: &str, what: What) {
        let mut kept = self.kept();
        let entry = Entry {
            at_ms: self.now(),
            who: who.to_owned(),
            what,
        };
        // The copy in memory is what is checked; the file is for people.
        if let Ok(line) = serde_json::to_string(&entry) {
            let _ = writeln!(kept.file, "{line}");
        }
        kept.entries.push(entry);
    }

    /// All that was noted so far, in order.
    pub fn entries(&self) -> Vec<Entry> {
        let mut kept = self.kept();
        let _ = kept.file.flush();
        kept.entries.clone()
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // After a panic it still holds whole entries.
        self.kept.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// Reads a history that was kept in `file`.
///
/// # Errors
/// When it cannot be read.
pub fn read(file: &Path) -> io::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for line in BufReader::new(File::open(file)?).lines() {
        entries.push(serde_json::from_str(&line?)?);
    }
    Ok(entries)
}
