//! In peace: after all faults, tasks are submitted, cancelled before and while they run, and drawn to their end, and nothing is there
//! that could explain a picture too many or too few on their tenant's day.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::clients::Caller;

/// Tasks; more than workers take up and orchestrators hand out at once, so that the last of them wait.
const TASKS: usize = 18;
/// Those of them, the last, that are cancelled at once, and those, the first, that are cancelled when they run.
const CANCELLED_WAITING: usize = 8;
const CANCELLED_RUNNING: usize = 4;
/// How long anything of it may take.
const LIMIT: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(100);
/// More than clocks are wrong by, and longer than the phase takes.
const NEAR_MIDNIGHT: u64 = 300;
const DAY: u64 = 24 * 3600;

/// The day (UTC), from 1970 on, on all the clocks of a run; none where they do not agree, or soon will not.
pub(crate) fn day() -> Option<u64> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = since.map_or(0, |since| since.as_secs());
    let day = (now + NEAR_MIDNIGHT) / DAY;
    (day == now.saturating_sub(NEAR_MIDNIGHT) / DAY).then_some(day)
}

/// Submits, cancels and waits. What was not cancelled in time is drawn: the log says which.
pub(crate) fn pass(caller: &mut Caller) {
    let deadline = Instant::now() + LIMIT;
    let mut tasks = Vec::new();
    for number in 0..TASKS {
        let (key, picture) = (format!("calm-{number}"), picture(number));
        until(deadline, || {
            let task = caller.submit(&picture, Some(&key));
            let accepted = task.is_some();
            tasks.extend(task);
            accepted
        });
    }
    let waiting = tasks.split_off(tasks.len().saturating_sub(CANCELLED_WAITING));
    // The last first: they wait longest.
    for task in waiting.iter().rev() {
        until(deadline, || caller.try_to_cancel(task));
    }
    for task in tasks.iter().take(CANCELLED_RUNNING) {
        until(deadline, || caller.was_taken_up(task));
        until(deadline, || caller.try_to_cancel(task));
    }
    for task in tasks.iter().chain(&waiting) {
        until(deadline + LIMIT, || caller.has_ended(task));
    }
}

/// Long enough to be cancelled while it is drawn.
fn picture(number: usize) -> Value {
    json!({
        "prompt": "a 3d cat on a blue background",
        "seed": 1,
        "steps": if number < CANCELLED_RUNNING { 100 } else { 20 },
        "images": if number < CANCELLED_RUNNING { 4 } else { 1 + number % 3 },
        "width": 64,
        "height": 64,
    })
}

/// Tries until it is so, or too late; what is not then is for the checker to find.
fn until(deadline: Instant, mut so: impl FnMut() -> bool) {
    while !so() && Instant::now() < deadline {
        std::thread::sleep(LOOK);
    }
}
