//! Random cases for the question "who was entitled to what", each from one seed, and the model that judges them.
//!
//! - [`Case`]: which registry holds a content, what the others say about it, and what clients ask for, in order;
//! - [`World`]: the daemons and the fake registries in which many cases are played at once;
//! - `play`: one case in a world, and what its clients saw;
//! - `verdict`: whether a client was entitled to what it saw. Pure.
//!
//! A case has content of its own, so that cases in one world have nothing to do with each other but load. What is
//! right and what each liar sends in its place are random bytes, so that each byte tells who sent it.

mod case;
mod play;
mod verdict;
mod world;

pub(crate) use case::{Case, Course, Entry, Place, Registry, Size, Source, Stance, What};
pub(crate) use play::{play, prelude, sweep};
pub(crate) use verdict::{Seen, judge};
pub(crate) use world::World;
