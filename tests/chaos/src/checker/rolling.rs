//! Whoever is asked to end does so by itself and in time; and while everything is restarted, one after the other, callers have nothing worse to
//! do than to ask again.

use super::{Evidence, Verdict};
use crate::history::What;

const ENDS: &str = "a process that is asked to end does so within its grace";
const AGAIN: &str = "during a rolling restart callers need only ask again";
const RESUMES: &str = "a stream goes on behind the last event that was seen";

pub(super) fn check(evidence: &Evidence, verdict: &mut Verdict) {
    let (mut rolling, mut since) = (false, 0);
    for entry in &evidence.entries {
        match &entry.what {
            What::Rolling { begins } => {
                rolling = *begins;
                since = entry.at_ms;
            }
            What::Stopped {
                instance,
                took_ms,
                within_ms,
                by_itself,
            } => {
                verdict.count("processes that were asked to end", 1);
                verdict.most("longest end of a process, ms", *took_ms);
                if !by_itself {
                    let text = format!("{instance} was killed after {within_ms} ms");
                    verdict.violated(ENDS, text);
                }
            }
            // What had begun before is of faults before.
            What::Trouble {
                request,
                since_ms,
                status,
                retry_after,
                broken,
            } if rolling && *since_ms >= since => {
                verdict.count("requests asked again in a rolling restart", 1);
                let harmless = match status {
                    Some(429 | 503) => *retry_after,
                    Some(_) => false,
                    None => *broken,
                };
                if !harmless {
                    let (who, status) = (&entry.who, status.unwrap_or(0));
                    let text = format!("{who} at {} ms: {request}, {status}", entry.at_ms);
                    verdict.violated(AGAIN, text);
                }
            }
            What::Resumed { task, last, next } => {
                verdict.count("streams that went on", 1);
                if *next != last + 1 {
                    let text = format!("{task}: {next} after {last}");
                    verdict.violated(RESUMES, text);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::sample::*;

    fn with(whats: Vec<What>) -> Evidence {
        let mut evidence = good();
        let entries = (100..).zip(whats);
        evidence
            .entries
            .extend(entries.map(|(at, what)| entry(at, "client", what)));
        evidence
    }

    fn trouble(since_ms: u64, status: Option<u16>, retry_after: bool, broken: bool) -> Evidence {
        let trouble = What::Trouble {
            request: "poll".to_owned(),
            since_ms,
            status,
            retry_after,
            broken,
        };
        let rolling = |begins| What::Rolling { begins };
        with(vec![rolling(true), trouble, rolling(false)])
    }

    #[test]
    fn a_process_that_must_be_killed_is_found() {
        for by_itself in [true, false] {
            let stopped = What::Stopped {
                instance: "gateway-1".to_owned(),
                took_ms: 7,
                within_ms: 9,
                by_itself,
            };
            let verdict = super::super::check(&with(vec![stopped]));
            let found = verdict.violations.iter().any(|v| v.property == ENDS);
            assert_eq!(found, !by_itself);
        }
    }

    #[test]
    fn what_asking_again_does_not_mend_is_found() {
        for (status, retry_after, broken) in [
            (Some(503), true, false),
            (Some(429), true, false),
            (None, false, true),
        ] {
            let evidence = trouble(100, status, retry_after, broken);
            assert_eq!(super::super::check(&evidence).violations, []);
        }
        for (status, retry_after) in [
            (Some(503), false),
            (Some(500), true),
            (Some(404), false),
            (None, false),
        ] {
            assert_eq!(violated(&trouble(100, status, retry_after, false)), AGAIN);
            // It began before.
            let before = trouble(99, status, retry_after, false);
            assert_eq!(super::super::check(&before).violations, []);
        }
    }

    #[test]
    fn a_stream_that_begins_again_or_leaves_out_is_found() {
        let resumed = |next| {
            let task = TASK.to_owned();
            let last = 7;
            with(vec![What::Resumed { task, last, next }])
        };
        assert_eq!(super::super::check(&resumed(8)).violations, []);
        for next in [1, 9] {
            assert_eq!(violated(&resumed(next)), RESUMES);
        }
    }
}
