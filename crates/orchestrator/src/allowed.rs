//! What a submission has taken of what its caller may, until it is known what has become of it.

use crate::meter::{Attempt, Charge};
use crate::waiting::Place;

/// A place among the tasks that wait, and the day's charge. Dropped without a word, both are given back.
pub(crate) struct Allowed<'a> {
    pub(crate) place: Option<Place<'a>>,
    pub(crate) charge: Option<Charge>,
    /// Which attempt at its task it is, where that would have the same id another time.
    pub(crate) attempt: Option<Attempt>,
}

impl Allowed<'_> {
    fn taken(self, made: bool) {
        if let Some(place) = self.place {
            place.taken();
        }
        match (self.charge, self.attempt) {
            (Some(charge), Some(attempt)) if !made => charge.in_doubt(attempt),
            (Some(charge), _) => charge.keep(),
            (None, _) => {}
        }
    }
}

/// The same while it is not known whether the task was made. Dropped, it counts as used: a caller who makes its answers get lost must not
/// get its pictures for nothing.
pub(crate) struct InDoubt<'a>(Option<Allowed<'a>>);

impl<'a> InDoubt<'a> {
    pub(crate) fn new(allowed: Allowed<'a>) -> Self {
        Self(Some(allowed))
    }

    /// It was.
    pub(crate) fn made(mut self) {
        if let Some(allowed) = self.0.take() {
            allowed.taken(true);
        }
    }

    /// It was not.
    pub(crate) fn not_made(mut self) {
        drop(self.0.take());
    }
}

impl Drop for InDoubt<'_> {
    fn drop(&mut self) {
        if let Some(allowed) = self.0.take() {
            allowed.taken(false);
        }
    }
}
