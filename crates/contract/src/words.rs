//! The words that stand for the contract's enums wherever people write them: in JSON, on the command line, in messages.
//!
//! Each list is closed and has every value but the unspecified one, in the order of `proto/`.

use crate::v1::{OutputFormat, PromptSyntax, Quality, Scheduler, TaskEvent, TaskPhase, Verdict};

/// A closed list.
pub type Words<T> = &'static [(&'static str, T)];

/// The samplers. `gpu-worker` has a test that these are the engine's.
pub const SCHEDULERS: Words<Scheduler> = &[
    ("ddim", Scheduler::Ddim),
    ("euler", Scheduler::Euler),
    ("dpm++2m", Scheduler::DpmPp2m),
    ("dpm++2m-karras", Scheduler::DpmPp2mKarras),
    ("euler-karras", Scheduler::EulerKarras),
    ("euler-exponential", Scheduler::EulerExponential),
    ("euler-beta", Scheduler::EulerBeta),
    ("euler-ancestral", Scheduler::EulerAncestral),
    ("heun", Scheduler::Heun),
    ("heun-karras", Scheduler::HeunKarras),
    ("dpm++2m-exponential", Scheduler::DpmPp2mExponential),
    ("dpm++2m-beta", Scheduler::DpmPp2mBeta),
    ("dpm++2m-sde", Scheduler::DpmPp2mSde),
    ("dpm++2m-sde-karras", Scheduler::DpmPp2mSdeKarras),
    ("dpm++2m-sde-exponential", Scheduler::DpmPp2mSdeExponential),
    ("unipc", Scheduler::Unipc),
    ("unipc-karras", Scheduler::UnipcKarras),
    ("lcm", Scheduler::Lcm),
    ("tcd", Scheduler::Tcd),
];

/// The ways to read a prompt.
pub const PROMPT_SYNTAXES: Words<PromptSyntax> = &[
    ("plain", PromptSyntax::Plain),
    ("weighted", PromptSyntax::Weighted),
];

/// The qualities.
pub const QUALITIES: Words<Quality> = &[("standard", Quality::Standard), ("hd", Quality::Hd)];

/// The file formats.
pub const FORMATS: Words<OutputFormat> = &[
    ("png", OutputFormat::Png),
    ("jpeg", OutputFormat::Jpeg),
    ("webp", OutputFormat::Webp),
];

/// The phases of a task.
pub const PHASES: Words<TaskPhase> = &[
    ("queued", TaskPhase::Queued),
    ("scheduled", TaskPhase::Scheduled),
    ("running", TaskPhase::Running),
    ("succeeded", TaskPhase::Succeeded),
    ("failed", TaskPhase::Failed),
    ("cancelled", TaskPhase::Cancelled),
];

/// What callers hear of a task without asking.
pub const EVENTS: Words<TaskEvent> = &[
    ("task.accepted", TaskEvent::Accepted),
    ("task.refused", TaskEvent::Refused),
    ("task.succeeded", TaskEvent::Succeeded),
    ("task.failed", TaskEvent::Failed),
    ("task.cancelled", TaskEvent::Cancelled),
];

/// The ends among them: what a webhook can be told.
pub const ENDS: Words<TaskEvent> = &[
    ("task.succeeded", TaskEvent::Succeeded),
    ("task.failed", TaskEvent::Failed),
    ("task.cancelled", TaskEvent::Cancelled),
];

/// What feedback says.
pub const VERDICTS: Words<Verdict> = &[("like", Verdict::Like), ("dislike", Verdict::Dislike)];

/// The word for `value`; none for the unspecified one.
pub fn word<T: Copy + PartialEq>(words: Words<T>, value: T) -> Option<&'static str> {
    let found = words.iter().find(|(_, known)| *known == value);
    found.map(|(word, _)| *word)
}

/// What `text` stands for.
pub fn meaning<T: Copy>(words: Words<T>, text: &str) -> Option<T> {
    let found = words.iter().find(|(word, _)| *word == text);
    found.map(|(_, value)| *value)
}

/// All words of a list, for the person who used another.
pub fn all<T>(words: Words<T>) -> String {
    let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<T>(words: Words<T>)
    where
        T: Copy + PartialEq + std::fmt::Debug + TryFrom<i32> + Into<i32>,
    {
        for (index, (text, value)) in words.iter().enumerate() {
            assert_eq!(meaning(words, text), Some(*value));
            assert_eq!(word(words, *value), Some(*text));
            let number: i32 = (*value).into();
            assert_eq!(number, index as i32 + 1, "{text}");
        }
        // The numbers go up from 1 without gaps, so the first that is not there is behind the last word.
        assert!(T::try_from(words.len() as i32 + 1).is_err());
        assert_eq!(meaning(words, "no such word"), None);
    }

    #[test]
    fn every_value_but_the_unspecified_one_has_a_word_that_reads_back() {
        check(SCHEDULERS);
        check(PROMPT_SYNTAXES);
        check(QUALITIES);
        check(FORMATS);
        check(PHASES);
        check(EVENTS);
        check(VERDICTS);
        assert!(ENDS.iter().all(|end| EVENTS.contains(end)));
        assert_eq!(word(SCHEDULERS, Scheduler::Unspecified), None);
        assert_eq!(all(PROMPT_SYNTAXES), "plain, weighted");
    }
}
