//! The engine from outside: pictures against diffusers, jobs put away and taken up, bytes and folders that lie.

// A test that cannot go on should stop where it is, helpers outside of `#[test]` included; what they print is seen
// only when one fails.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod checkpoints;
mod files;
mod folders;
mod halves;
mod images;
mod mixes;
mod pictures;
mod prompts;
mod residency;
mod snapshots;
mod support;
