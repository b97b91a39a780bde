//! How far a picture is, said on stderr: with a bar at a terminal, in plain lines elsewhere.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::client::{phase, wait};
use crate::follow::{BACK, Heard, away};

/// Between lines of one phase, at least: a short picture's steps would only clutter a log.
const OFTEN: Duration = Duration::from_secs(1);
/// Between lines of one phase, at most, as long as there is anything new.
const SELDOM: Duration = Duration::from_secs(5);
/// The phase of a task of which nothing was heard yet.
const FIRST: &str = "queued";
/// Lines within one phase, about: each tenth of the way.
const PARTS: u64 = 10;

/// Tells of one task.
pub(crate) enum Progress {
    /// With the phase that it shows while the platform is there.
    Bar(ProgressBar, &'static str),
    Lines(Lines),
}

impl Progress {
    /// Begins with the task's id, where it is not a bar.
    pub(crate) fn of(task: &str) -> Self {
        if std::io::stderr().is_terminal() {
            return Self::Bar(bar(), FIRST);
        }
        say(&format!("task {task}"));
        Self::Lines(Lines::default())
    }

    pub(crate) fn tell(&mut self, heard: Heard<'_>) {
        match self {
            Self::Bar(bar, shown) => match heard {
                Heard::Task(task) => {
                    *shown = phase(task);
                    bar.set_message(*shown);
                }
                Heard::Steps(step, steps) => {
                    bar.set_length(steps.into());
                    bar.set_position(step.into());
                }
                Heard::Away(_) => bar.set_message("away"),
                Heard::Back => bar.set_message(*shown),
            },
            Self::Lines(lines) => {
                if let Some(line) = lines.line(&heard, Instant::now()) {
                    say(&line);
                }
            }
        }
    }

    /// The person at the terminal has had enough.
    pub(crate) fn cancelling(&self) {
        match self {
            Self::Bar(bar, _) => bar.abandon_with_message("cancelling"),
            Self::Lines(_) => say("cancelling"),
        }
    }

    /// What follows is for stdout.
    pub(crate) fn finish(&self) {
        if let Self::Bar(bar, _) = self {
            bar.finish_and_clear();
        }
    }
}

/// A line on stderr. Where nobody reads it, the picture is drawn all the same.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Which of the things that are heard are worth a line.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    phase: String,
    /// The last step that was told, and when.
    told: Option<(u32, Instant)>,
}

impl Lines {
    fn line(&mut self, heard: &Heard<'_>, now: Instant) -> Option<String> {
        match *heard {
            Heard::Task(task) => {
                let line = format!("{}{}", phase(task), wait(task));
                if line == self.phase {
                    return None;
                }
                self.phase.clone_from(&line);
                Some(line)
            }
            Heard::Steps(step, steps) => {
                if !self.is_due(step, steps, now) {
                    return None;
                }
                self.told = Some((step, now));
                Some(format!("step {step}/{steps}"))
            }
            Heard::Away(error) => Some(away(error)),
            Heard::Back => Some(BACK.to_owned()),
        }
    }

    fn is_due(&self, step: u32, steps: u32, now: Instant) -> bool {
        let Some((before, at)) = self.told else {
            return true;
        };
        let passed = now.saturating_duration_since(at);
        let further = u64::from(step.saturating_sub(before)) * PARTS >= u64::from(steps);
        passed >= SELDOM || (further && passed >= OFTEN)
    }
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::new(1);
    let template = "  {msg:10} [{bar:32}] {pos}/{len} steps  {elapsed}";
    let style = ProgressStyle::with_template(template);
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style.progress_chars("█▓░"));
    bar.set_message(FIRST);
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

#[cfg(test)]
mod tests {
    use contract::v1::{Task, TaskPhase};

    use super::*;

    fn lines_of_steps(count: u32, each: Duration) -> Vec<String> {
        let mut lines = Lines::default();
        let mut now = Instant::now();
        let mut told = Vec::new();
        for step in 1..=count {
            now += each;
            told.extend(lines.line(&Heard::Steps(step, count), now));
        }
        told
    }

    #[test]
    fn a_line_is_written_each_tenth_of_the_way_or_every_five_seconds() {
        let tenths = lines_of_steps(100, Duration::from_millis(200));
        assert_eq!(tenths.len(), 10, "{tenths:?}");
        assert_eq!(tenths[..2], ["step 1/100", "step 11/100"]);
        // Slow: every five seconds. Fast: no oftener than once a second.
        assert_eq!(lines_of_steps(100, Duration::from_secs(2)).len(), 34);
        assert_eq!(lines_of_steps(12, Duration::from_millis(10)).len(), 1);
    }

    #[test]
    fn each_phase_is_told_once_and_another_wait_again() {
        let mut lines = Lines::default();
        let now = Instant::now();
        let mut task = Task {
            estimated_wait_ms: Some(3200),
            ..Task::default()
        };
        task.set_phase(TaskPhase::Queued);
        let first = lines.line(&Heard::Task(&task), now).unwrap();
        assert_eq!(first, "queued, begins in about 4 s");
        assert_eq!(lines.line(&Heard::Task(&task), now), None);
        task.estimated_wait_ms = Some(1000);
        assert!(lines.line(&Heard::Task(&task), now).is_some());
        task.estimated_wait_ms = None;
        task.set_phase(TaskPhase::Running);
        let running = lines.line(&Heard::Task(&task), now);
        assert_eq!(running.as_deref(), Some("running"));
    }
}
