//! Upstreams: which is asked and when again, what is believed of them, and what is served while they are of no use.

mod fallback;
mod hedge;
mod loops;
mod names;
mod never_asked;
mod offline;
mod outage;
mod reach;
mod redirects;
mod refusals;
mod retries;
mod spellings;
mod tiers;
mod trust;
mod unlisted;
