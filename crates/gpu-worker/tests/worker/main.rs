//! The worker against a real broker, a real store and the real engine, with the demo model. Only the registry is a stand-in:
//! it is another service, so a few lines serve its contract here.

#![allow(clippy::unwrap_used, reason = "a failed step of a test fails the test")]

mod elsewhere;
mod ends;
mod failures;
mod full;
mod interruptions;
mod lagging;
mod namesakes;
mod process;
mod processes;
mod support;
mod told;
