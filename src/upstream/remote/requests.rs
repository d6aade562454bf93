//! What one endpoint of a remote is asked: manifests, blobs, lists, and whether it takes our logins.
//!
//! Every function here asks one [`Target`](super::exchange::Target) once, and judges what it says. Whether it is asked
//! again, and who else is, is not decided here.

pub(in crate::upstream) mod blobs;
pub(in crate::upstream) mod lists;
pub(in crate::upstream) mod login_check;
pub(in crate::upstream) mod manifests;
