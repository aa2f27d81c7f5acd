//! Chaos: a course of events for many webhooks, what is done to the system meanwhile, and one checker that judges what came of it.

pub mod checker;
pub mod course;
pub mod journal;
pub mod kills;
pub mod measure;
pub mod trap;
pub mod trial;
pub mod witness;
