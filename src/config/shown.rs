//! Shows a configuration as `check-config` prints it, one setting a line. Amounts and times are in the largest unit of which
//! they are whole numbers, and can be typed so.

use std::fmt::{self, Display};

use super::Config;
use crate::cache::Rule;
use crate::units::show;
use crate::upstream::{self, LimitsConfig, Reserve, Timeouts};

impl Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "data_dir {}", self.data_dir.display())?;
        for address in &self.http.listen {
            writeln!(f, "http.listen {address}")?;
        }
        writeln!(f, "http.drain_seconds {}", show(self.http.drain))?;
        let limits = &self.http.limits;
        line(f, "http.limits.connections", limits.connections)?;
        line(f, "http.limits.requests_per_second", limits.requests_per_second)?;
        line(f, "http.limits.bytes_per_second", limits.bytes_per_second)?;
        line(f, "http.login_limits.requests_per_second", self.http.login_limits.requests_per_second)?;
        line(f, "http.login_limits.bytes_per_second", self.http.login_limits.bytes_per_second)?;
        writeln!(f, "admin.listen {}", self.admin.listen)?;
        line(f, "admin.metrics_listen", self.admin.metrics_listen)?;
        writeln!(f, "cache.max_bytes {}", self.cache.max_bytes)?;
        writeln!(f, "cache.min_free {}", self.cache.min_free)?;
        writeln!(f, "cache.lease_seconds {}", show(self.cache.lease))?;
        writeln!(f, "cache.complete {}", self.cache.complete)?;
        writeln!(f, "cache.scrub {}", self.cache.scrub)?;
        for Rule { pattern, immutable, check_after, check_behind, serve_stale, on_removed } in &self.tags {
            write!(f, "tags {pattern}")?;
            if *immutable {
                write!(f, " immutable")?;
            }
            let after = show(*check_after);
            writeln!(
                f,
                " check_after {after} check_behind {check_behind} serve_stale {serve_stale} on_removed {on_removed}"
            )?;
        }
        let default = self.default_upstream.0.as_ref();
        write!(f, "default_upstream {}", default.map_or("none", |registry| registry.as_str()))?;
        if let Some(parents) = &self.parents {
            for endpoint in &parents.endpoints {
                write!(f, "\nparent {endpoint}")?;
            }
            if parents.timeouts != Timeouts::default() {
                timeouts(f, "parents", &parents.timeouts)?;
            }
        }
        if self.unlisted().is_some() {
            write!(f, "\nparents are asked for every other registry, too")?;
        }
        self.upstreams.iter().try_for_each(|upstream| self::upstream(f, upstream))
    }
}

/// Writes a setting if it has a value.
fn line(f: &mut fmt::Formatter<'_>, key: &str, value: Option<impl Display>) -> fmt::Result {
    value.map_or(Ok(()), |value| writeln!(f, "{key} {value}"))
}

fn upstream(f: &mut fmt::Formatter<'_>, upstream: &upstream::Config) -> fmt::Result {
    write!(f, "\nupstream {}", upstream.registry)?;
    for endpoint in &upstream.endpoints {
        write!(f, " {endpoint}")?;
    }
    for endpoint in upstream.fallbacks.iter().flat_map(|fallback| &fallback.endpoints) {
        write!(f, " fallback {endpoint}")?;
    }
    if upstream.mirror {
        write!(f, " mirror")?;
    }
    if upstream.offline {
        write!(f, " offline")?;
    }
    restraint(f, &format!("upstream {}", upstream.registry), &upstream.limits, &upstream.timeouts)?;
    for fallback in &upstream.fallbacks {
        let first = fallback.endpoints.first().map(ToString::to_string).unwrap_or_default();
        let name = format!("upstream {} fallback {first}", upstream.registry);
        restraint(f, &name, &fallback.limits, &fallback.timeouts)?;
    }
    Ok(())
}

/// Writes the limits and timeouts of `name` that are configured.
fn restraint(f: &mut fmt::Formatter<'_>, name: &str, limits: &LimitsConfig, waits: &Timeouts) -> fmt::Result {
    below(f, name, "limits.requests_per_second", limits.requests_per_second)?;
    below(f, name, "limits.concurrent_requests", limits.concurrent_requests)?;
    below(f, name, "limits.concurrent_transfers", limits.concurrent_transfers)?;
    below(f, name, "limits.bytes_per_second", limits.bytes_per_second)?;
    below(f, name, "limits.reserve", Some(limits.reserve).filter(|reserve| *reserve != Reserve::default()))?;
    if *waits == Timeouts::default() { Ok(()) } else { timeouts(f, name, waits) }
}

/// Writes a setting of `name` if it has a value.
fn below(f: &mut fmt::Formatter<'_>, name: &str, key: &str, value: Option<impl Display>) -> fmt::Result {
    value.map_or(Ok(()), |value| write!(f, "\n{name} {key} {value}"))
}

fn timeouts(f: &mut fmt::Formatter<'_>, name: &str, timeouts: &Timeouts) -> fmt::Result {
    let Timeouts { connect, header, idle, token, budget } = *timeouts;
    below(f, name, "timeouts.connect_seconds", Some(show(connect)))?;
    below(f, name, "timeouts.header_seconds", Some(show(header)))?;
    below(f, name, "timeouts.idle_seconds", Some(show(idle)))?;
    below(f, name, "timeouts.token_seconds", Some(show(token)))?;
    below(f, name, "timeouts.budget_seconds", Some(show(budget)))
}
