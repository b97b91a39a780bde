//! The engine from outside: pictures against diffusers, jobs put away and taken up, bytes and folders that lie.

mod folders;
mod pictures;
mod snapshots;
mod support;
