//! Follows a task to its end, over as many connections as it takes: a platform that is started again is waited for.
//!
//! Every stream of a task's events begins with the task as it is then, so a new stream goes on where the last one broke off; what was
//! heard before is not told twice.

use std::time::{Duration, Instant};

use contract::ErrorCode;
use contract::v1::{Task, TaskPhase, watch_response};

use crate::client::Client;
use crate::error::CliError;

/// How long a platform that has gone away is waited for, where nothing else is said.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Between tries: first, and at most; doubled in between.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// A stream that lasted so long had worked, though nothing was to be told: what comes after it is another loss.
const STEADY: Duration = Duration::from_secs(5);

/// What is heard of a task.
#[derive(Debug)]
pub(crate) enum Heard<'a> {
    /// How it is now: other than before.
    Task(&'a Task),
    /// Steps done, of how many.
    Steps(u32, u32),
    /// The platform is away, and why; told once each time that it is lost.
    Away(&'a CliError),
    /// It is there again.
    Back,
}

/// A task that is followed.
pub(crate) struct Follow<'a> {
    client: &'a Client,
    task: &'a str,
    patience: Duration,
    /// Whether the platform was there: one that never was is not waited for.
    met: bool,
    /// Whether it was told that the platform is away, and not yet that it is back.
    away: bool,
    /// When the stream began that is open, or was the last.
    opened: Option<Instant>,
    known: Known,
    loss: Loss,
}

/// What was heard last.
#[derive(Debug, Default)]
struct Known {
    task: Option<Task>,
    steps: Option<(u32, u32)>,
}

impl Known {
    fn is_new_task(&mut self, task: &Task) -> bool {
        if self.task.as_ref() == Some(task) {
            return false;
        }
        self.task = Some(task.clone());
        true
    }

    fn are_new_steps(&mut self, steps: (u32, u32)) -> bool {
        self.steps.replace(steps) != Some(steps)
    }
}

/// Since when the platform is away, and how long until the next try.
#[derive(Debug, Default, PartialEq, Eq)]
struct Loss {
    since: Option<Instant>,
    pause: Duration,
}

impl Loss {
    fn over(&mut self) {
        *self = Self::default();
    }

    /// How long to wait before the next try; `None` when patience is at its end. `hint`: what the platform says itself.
    fn again(
        &mut self,
        now: Instant,
        patience: Duration,
        hint: Option<Duration>,
    ) -> Option<Duration> {
        let since = *self.since.get_or_insert(now);
        self.pause = (self.pause * 2).clamp(PAUSES.0, PAUSES.1);
        let pause = hint.unwrap_or_default().clamp(self.pause, PAUSES.1);
        let left = patience.checked_sub(now.saturating_duration_since(since));
        left.filter(|left| !left.is_zero())
            .map(|left| pause.min(left))
    }
}

impl<'a> Follow<'a> {
    /// A task of a platform that may not be there at all.
    pub(crate) fn new(client: &'a Client, task: &'a str, patience: Duration) -> Self {
        Self {
            client,
            task,
            patience,
            met: false,
            away: false,
            opened: None,
            known: Known::default(),
            loss: Loss::default(),
        }
    }

    /// A task that the platform has just told of.
    pub(crate) fn of(client: &'a Client, task: &'a Task, patience: Duration) -> Self {
        Self {
            met: true,
            ..Self::new(client, &task.id, patience)
        }
    }

    /// Tells what is heard until the task has ended, and gives the task then.
    ///
    /// # Errors
    /// When the platform refuses, was not there to begin with, or stays away for longer than patience lasts.
    pub(crate) async fn until_the_end(
        mut self,
        mut tell: impl FnMut(Heard<'_>),
    ) -> Result<Task, CliError> {
        loop {
            let error = match self.listen(&mut tell).await {
                Ok(Some(ended)) => return Ok(ended),
                Ok(None) => CliError::Answer("a watch that stopped before the task's end"),
                Err(error) => error,
            };
            if !self.will_pass(&error) {
                return Err(error);
            }
            let lasted = self.opened.take().map(|opened| opened.elapsed());
            if lasted.is_some_and(|lasted| lasted >= STEADY) {
                self.loss.over();
            }
            if !std::mem::replace(&mut self.away, true) {
                tell(Heard::Away(&error));
            }
            let hint = match &error {
                CliError::Refused(failure) => failure.retry_after,
                _ => None,
            };
            match self.loss.again(Instant::now(), self.patience, hint) {
                Some(pause) => tokio::time::sleep(pause).await,
                None => {
                    return Err(CliError::Away {
                        task: self.task.to_owned(),
                        patience: self.patience,
                        source: Box::new(error),
                    });
                }
            }
        }
    }

    /// One stream, from its first event to its last; the task, if that was its end.
    async fn listen(&mut self, tell: &mut impl FnMut(Heard<'_>)) -> Result<Option<Task>, CliError> {
        let mut updates = self.client.watch(self.task).await?;
        let failed = |status| self.client.failed(status);
        while let Some(update) = updates.message().await.map_err(failed)? {
            self.met = true;
            self.opened.get_or_insert_with(Instant::now);
            if std::mem::take(&mut self.away) {
                tell(Heard::Back);
            }
            match update.event {
                Some(watch_response::Event::Progress(progress)) => {
                    let steps = (progress.step, progress.steps);
                    if self.known.are_new_steps(steps) {
                        self.loss.over();
                        tell(Heard::Steps(steps.0, steps.1));
                    }
                }
                Some(watch_response::Event::Task(task)) => {
                    if self.known.is_new_task(&task) {
                        self.loss.over();
                        tell(Heard::Task(&task));
                    }
                    if has_ended(&task) {
                        return Ok(Some(task));
                    }
                }
                Some(watch_response::Event::Preview(_)) | None => {}
            }
        }
        Ok(None)
    }

    fn will_pass(&self, error: &CliError) -> bool {
        match error {
            CliError::Unreachable { .. } | CliError::Untrusted { .. } => self.met,
            // A connection that broke has one of these codes too.
            CliError::Refused(failure) => matches!(
                failure.code,
                ErrorCode::Unavailable | ErrorCode::DeadlineExceeded | ErrorCode::RateLimited
            ),
            CliError::Answer(_) => true,
            _ => false,
        }
    }
}

/// What is said of a platform that is there again.
pub(crate) const BACK: &str = "the platform is there again";

/// What is said of a platform that is away and waited for.
pub(crate) fn away(error: &CliError) -> String {
    let why = lifecycle::chain(error);
    format!("the platform is away and waited for: {why}")
}

/// Whether nothing more will happen to it.
pub(crate) fn has_ended(task: &Task) -> bool {
    matches!(
        task.phase(),
        TaskPhase::Succeeded | TaskPhase::Failed | TaskPhase::Cancelled
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_platform_that_is_away_is_asked_less_and_less_often_and_not_for_ever() {
        let mut loss = Loss::default();
        let patience = Duration::from_secs(60);
        let (begin, mut now) = (Instant::now(), Instant::now());
        let mut pauses = Vec::new();
        while let Some(pause) = loss.again(now, patience, None) {
            pauses.push(pause);
            now += pause;
            assert!(pauses.len() < 100, "{pauses:?}");
        }
        assert_eq!(pauses[0], PAUSES.0);
        assert_eq!(pauses[1], PAUSES.0 * 2);
        assert!(pauses.iter().all(|pause| *pause <= PAUSES.1));
        assert!(now - begin >= patience && now - begin < patience + PAUSES.1);
        // Once it was there, it begins anew.
        loss.over();
        assert_eq!(loss.again(now, patience, None), Some(PAUSES.0));
        let hint = Some(Duration::from_secs(2));
        assert_eq!(loss.again(now, patience, hint), hint);
        assert_eq!(Loss::default().again(now, Duration::ZERO, None), None);
    }

    #[test]
    fn what_was_heard_is_not_told_again_and_another_wait_is() {
        let mut known = Known::default();
        let mut task = Task {
            estimated_wait_ms: Some(4000),
            ..Task::default()
        };
        assert!(known.is_new_task(&task));
        assert!(!known.is_new_task(&task));
        task.estimated_wait_ms = Some(2000);
        assert!(known.is_new_task(&task));
        assert!(known.are_new_steps((3, 10)));
        assert!(!known.are_new_steps((3, 10)));
        // Taken up by another worker, it may be further back.
        assert!(known.are_new_steps((1, 10)));
    }
}
