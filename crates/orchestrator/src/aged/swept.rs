//! What a look through WORK notes: what has ended, what stays, and what failed, and so up to where the log may let go.

use task_log::{TaskLogError, Unreadable};

/// What came of looking at a task.
pub(super) enum Looked {
    /// Nothing is to be done.
    Stays,
    /// It had to be ended, or another ended it just now, and lies here.
    Ended(u64),
    /// It had to be ended and has not, or so much failed before that it was not tried.
    NotEnded(u64, Option<TaskLogError>),
    /// It cannot be read, and is young enough to stay.
    Unreadable(Box<Unreadable>),
    /// The broker did not say, or did so little before that it was not asked.
    NotRead(Option<TaskLogError>),
}

/// What came of looking at all that is in WORK.
#[derive(Default)]
pub(super) struct Swept {
    /// Where the first lies that was ended, here or elsewhere just now.
    pub(super) ended: Option<u64>,
    /// Where the first lies that stays and may be old.
    stays: Option<u64>,
    pub(super) not_ended: usize,
    not_read: usize,
    pub(super) unreadable: usize,
    /// The first of these.
    pub(super) first_unreadable: Option<Box<Unreadable>>,
    pub(super) error: Option<TaskLogError>,
}

fn earlier(first: &mut Option<u64>, place: u64) {
    *first = Some(first.map_or(place, |first| first.min(place)));
}

impl Swept {
    pub(super) fn note(mut self, looked: Looked) -> Self {
        match looked {
            Looked::Stays => {}
            Looked::Ended(place) => earlier(&mut self.ended, place),
            Looked::NotEnded(place, error) => {
                self.not_ended += 1;
                earlier(&mut self.stays, place);
                self.error = error.or(self.error);
            }
            Looked::Unreadable(found) => {
                self.unreadable += 1;
                earlier(&mut self.stays, found.sequence);
                let first = self.first_unreadable.as_ref();
                if first.is_none_or(|first| found.sequence < first.sequence) {
                    self.first_unreadable = Some(found);
                }
            }
            Looked::NotRead(error) => {
                self.not_read += 1;
                self.error = error.or(self.error);
            }
        }
        self
    }

    /// Says how much failed.
    pub(super) fn tell_failures(&self) {
        let Some(error) = &self.error else {
            return;
        };
        tracing::warn!(
            not_ended = self.not_ended,
            not_read = self.not_read,
            error = lifecycle::chain(error),
            "tasks that are kept no longer are looked at again"
        );
    }

    /// Where what may go lies before, if those did that were told of; `None` where nobody knows.
    pub(super) fn bound(&self, told: u64) -> Option<u64> {
        // Where it lies what was not read is not known, and a cursor that an earlier version wrote does not tell of what was handed over.
        (self.not_read == 0).then(|| self.stays.map_or(told, |stays| stays.min(told)))
    }
}
