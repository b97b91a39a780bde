//! Pictures are in the store with the bytes that the log names, as many as were asked for, and they are the same whoever drew them and
//! however often it was interrupted (invariants I3 and I5).

use std::collections::BTreeMap;

use super::{Evidence, Log, Verdict};
use crate::history::{Happened, What};

const STORED: &str = "pictures are in the store as the log says";
const ASKED: &str = "there are as many pictures as were asked for";
const SAME: &str = "the same request and seed give the same bytes";
const SHOWN: &str = "clients see what the log says";

pub(super) fn check(evidence: &Evidence, log: &Log, verdict: &mut Verdict) {
    let mut looks: BTreeMap<&str, (&str, Vec<&str>)> = BTreeMap::new();
    for (&id, task) in &log.tasks {
        let (Some(submitted), Some(done)) = (task.submitted, task.done) else {
            continue;
        };
        let Happened::Submitted {
            images: asked,
            look,
            ..
        } = &submitted.event.event
        else {
            continue;
        };
        let Happened::Done {
            outcome, images, ..
        } = &done.event.event
        else {
            continue;
        };
        if outcome != "succeeded" {
            continue;
        }
        if images.len() != *asked as usize {
            let text = format!("{id} asked for {asked} and has {}", images.len());
            verdict.violated(ASKED, text);
        }
        for image in images {
            verdict.count("pictures", 1);
            let key = &image.key;
            match evidence.objects.get(key) {
                Some(found) if found.sha256 == image.sha256 && found.bytes == image.bytes => {}
                Some(_) => verdict.violated(STORED, format!("{key} has other bytes")),
                None => verdict.violated(STORED, format!("{key} is not there")),
            }
        }
        let digests: Vec<&str> = images.iter().map(|i| i.sha256.as_str()).collect();
        let (first, expected) = looks.entry(look).or_insert_with(|| (id, digests.clone()));
        if *expected != digests {
            let text = format!("{id} and {first} asked for {look}");
            verdict.violated(SAME, text);
        }
    }
    shown(evidence, log, verdict);
}

fn shown(evidence: &Evidence, log: &Log, verdict: &mut Verdict) {
    for entry in &evidence.entries {
        let What::Seen {
            task: id,
            phase,
            digests,
        } = &entry.what
        else {
            continue;
        };
        let done = log.tasks.get(id.as_str()).and_then(|task| task.done);
        let Some(Happened::Done {
            outcome, images, ..
        }) = done.map(|done| &done.event.event)
        else {
            continue;
        };
        let ended = matches!(phase.as_str(), "succeeded" | "failed" | "cancelled");
        let stored = images.iter().map(|image| &image.sha256);
        if ended && (phase != outcome || !digests.iter().eq(stored)) {
            let text = format!("{} saw {id} {phase}, and it is {outcome}", entry.who);
            verdict.violated(SHOWN, text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::sample::*;

    #[test]
    fn a_picture_that_is_not_there_or_has_other_bytes_is_found() {
        let mut evidence = good();
        evidence.objects.clear();
        assert_eq!(violated(&evidence), STORED);
        let mut evidence = good();
        let object = evidence.objects.values_mut().next().unwrap();
        object.sha256 = "dog".to_owned();
        assert_eq!(violated(&evidence), STORED);
    }

    #[test]
    fn a_picture_too_few_is_found() {
        let mut evidence = good();
        if let Happened::Submitted { images, .. } = &mut evidence.log[0].event.event {
            *images = 2;
        }
        evidence.charged.insert(TENANT.to_owned(), 2);
        assert_eq!(violated(&evidence), ASKED);
    }

    #[test]
    fn another_picture_for_the_same_request_is_found() {
        let mut evidence = good();
        let mut end = succeeded("task-2");
        if let Happened::Done { images, .. } = &mut end {
            images[0].sha256 = "dog".to_owned();
        }
        with_another(&mut evidence, "task-2", end);
        let mut object = evidence.objects.values().next().unwrap().clone();
        object.sha256 = "dog".to_owned();
        evidence.objects.insert(picture("task-2").key, object);
        evidence.charged.insert(TENANT.to_owned(), 2);
        assert_eq!(violated(&evidence), SAME);
    }

    #[test]
    fn an_end_that_a_client_saw_otherwise_is_found() {
        for (phase, digests) in [("cancelled", &[][..]), ("succeeded", &["dog"][..])] {
            let mut evidence = good();
            evidence
                .entries
                .push(entry(80, "client", seen(TASK, phase, digests)));
            assert_eq!(violated(&evidence), SHOWN);
        }
    }
}
