//! A limit on manifests, as Docker Hub has it: GETs count, HEADs do not, and both say what is left.

use super::wire::{Answer, Request};

/// What of it is left.
pub(super) struct Quota {
    limit: u64,
    remaining: u64,
}

impl Quota {
    pub(super) fn new(limit: u64) -> Self {
        Self { limit, remaining: limit }
    }

    /// Counts a request for a manifest that is there, and says so in its answer.
    pub(super) fn apply(&mut self, request: &Request, honest: Answer) -> Answer {
        if !request.path().contains("/manifests/") || honest.status != 200 {
            return honest;
        }
        let answer = match (&*request.method, self.remaining) {
            ("GET", 0) => Answer::error(429, "TOOMANYREQUESTS"),
            ("GET", _) => {
                self.remaining -= 1;
                honest
            }
            _ => honest,
        };
        answer
            .header("ratelimit-limit", &format!("{};w=21600", self.limit))
            .header("ratelimit-remaining", &format!("{};w=21600", self.remaining))
    }
}
