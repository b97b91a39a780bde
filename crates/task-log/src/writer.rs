//! Whose a state or an end is, where who wrote it must know.

use contract::task::{Done, State};

/// Who wrote a state or an end, as that tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Writer<T> {
    /// The worker's name; nothing where no worker wrote it, or none has the task.
    pub worker: T,
    /// Which process of that name; nothing where an earlier version wrote it.
    pub incarnation: T,
    /// As which attempt.
    pub attempt: u32,
}

impl<T: PartialEq + Default> Writer<T> {
    /// Whether this is who wrote what was found: the same process, in the same attempt. A process that was started again is another, and so is a
    /// second worker of the same name. Of what does not say which process wrote it the worker's name tells, as it did in the version that wrote it.
    pub fn wrote(&self, found: &Self) -> bool {
        let is_this_process = if found.incarnation == T::default() {
            found.worker == self.worker
        } else {
            found.incarnation == self.incarnation
        };
        is_this_process && found.attempt == self.attempt
    }
}

impl<'a> From<&'a State> for Writer<&'a str> {
    fn from(state: &'a State) -> Self {
        Self {
            worker: state.worker.as_str(),
            incarnation: state.incarnation.as_str(),
            attempt: state.attempt,
        }
    }
}

impl<'a> From<&'a Done> for Writer<&'a str> {
    fn from(done: &'a Done) -> Self {
        Self {
            worker: done.worker.as_str(),
            incarnation: done.incarnation.as_str(),
            attempt: done.attempt,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Writer<&str> = Writer {
        worker: "painter",
        incarnation: "one",
        attempt: 2,
    };

    fn state(worker: &str, incarnation: &str, attempt: u32) -> State {
        State {
            worker: worker.to_owned(),
            incarnation: incarnation.to_owned(),
            attempt,
            ..State::default()
        }
    }

    #[test]
    fn what_another_process_wrote_is_not_ones_own_whatever_its_worker_is_called() {
        let is_own = |state: State| OWN.wrote(&Writer::from(&state));
        assert!(is_own(state("painter", "one", 2)));
        assert!(!is_own(state("painter", "two", 2)));
        assert!(!is_own(state("painter", "one", 1)));
    }

    #[test]
    fn what_does_not_say_which_process_wrote_it_is_told_by_the_workers_name() {
        let is_own = |state: State| OWN.wrote(&Writer::from(&state));
        assert!(is_own(state("painter", "", 2)));
        assert!(!is_own(state("sculptor", "", 2)));
        assert!(!is_own(state("painter", "", 1)));
        // Nobody has the task.
        assert!(!is_own(state("", "", 2)));
    }

    #[test]
    fn an_end_tells_who_wrote_it_as_a_state_does() {
        let done = |incarnation: &str| Done {
            worker: "painter".to_owned(),
            incarnation: incarnation.to_owned(),
            attempt: 2,
            ..Done::default()
        };
        assert!(OWN.wrote(&Writer::from(&done("one"))));
        assert!(!OWN.wrote(&Writer::from(&done("two"))));
    }
}
