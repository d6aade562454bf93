//! What one endpoint of a remote is asked: manifests, blobs, lists, and whether it takes our logins.
//!
//! Every function here asks one [`Target`](super::exchange::Target) once, and judges what it says. Whether it is asked
//! again, and who else is, is not decided here.

pub(crate) mod blobs;
pub(crate) mod lists;
pub(crate) mod login_check;
pub(crate) mod manifests;
