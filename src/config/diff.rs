//! What differs between two configurations, key by key, and which of it a running berth cannot change.
//!
//! Every section is taken apart whole, so that a new key does not compile before somebody has decided here whether it can
//! be changed while berth runs.

use std::fmt::Debug;

use super::Config;
use crate::http::admin;
use crate::oci::Registry;
use crate::{cache, http, upstream};

/// What differs from the configuration in force.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// What can be changed in place, by its keys.
    pub in_place: Vec<String>,
    /// What needs a restart: key, value, and what was expected.
    pub by_restart: Vec<String>,
}

impl Changes {
    /// What differs in `new` from `old`.
    pub fn between(old: &Config, new: &Config) -> Self {
        let mut changes = Self::default();
        let Config {
            data_dir,
            data_mode,
            default_upstream,
            offline,
            public_registries,
            http,
            admin,
            cache,
            upstreams,
            parents,
            tags,
            pins,
            // Made of the others.
            registries: _,
        } = old;
        changes.restart("data_dir", data_dir, &new.data_dir);
        changes.restart("data_mode", data_mode, &new.data_mode);
        changes.place("default_upstream", default_upstream, &new.default_upstream);
        changes.place("offline", offline, &new.offline);
        changes.place("public_registries", public_registries, &new.public_registries);
        changes.http(http, &new.http);
        let admin::Config { listen, metrics_listen, allow, token_file, hosts } = admin;
        changes.restart("admin.listen", listen, &new.admin.listen);
        changes.restart("admin.metrics_listen", metrics_listen, &new.admin.metrics_listen);
        changes.place("admin.allow", allow, &new.admin.allow);
        changes.place("admin.token_file", token_file, &new.admin.token_file);
        changes.place("admin.hosts", hosts, &new.admin.hosts);
        changes.cache(cache, &new.cache);
        changes.upstreams(upstreams, &new.upstreams);
        changes.place("parents", parents, &new.parents);
        changes.place("tags", tags, &new.tags);
        changes.place("pin", pins, &new.pins);
        changes
    }

    fn place<T: PartialEq>(&mut self, key: &str, old: &T, new: &T) {
        if old != new {
            self.in_place.push(key.to_owned());
        }
    }

    fn restart<T: PartialEq + Debug>(&mut self, key: &str, old: &T, new: &T) {
        if old != new {
            let [old, new] = [old, new].map(show);
            self.by_restart
                .push(format!("{key} {new}: expected {old} as it is now: another needs a restart"));
        }
    }

    fn http(&mut self, old: &http::Config, new: &http::Config) {
        let http::Config {
            listen,
            hosts,
            allow,
            peers,
            htpasswd,
            tls,
            access_log,
            list_private,
            drain,
            limits,
            login_limits,
        } = old;
        self.restart("http.listen", listen, &new.listen);
        self.place("http.hosts", hosts, &new.hosts);
        self.place("http.allow", allow, &new.allow);
        self.place("http.peers", peers, &new.peers);
        self.place("http.htpasswd", htpasswd, &new.htpasswd);
        match (tls, &new.tls) {
            (Some(old), Some(new)) => {
                // Connections that are open have not been asked for what a new one must show.
                if old.client_ca.is_some() == new.client_ca.is_some() {
                    self.place("http.tls", old, new);
                } else {
                    self.restart("http.tls.client_ca", &old.client_ca, &new.client_ca);
                }
            }
            (old, new) => {
                let [old, new] = [old.is_some(), new.is_some()].map(|is_on| if is_on { "on" } else { "off" });
                self.restart("http.tls", &old, &new);
            }
        }
        self.place("http.access_log", access_log, &new.access_log);
        self.place("http.list_private", list_private, &new.list_private);
        self.place("http.drain_seconds", drain, &new.drain);
        self.place("http.limits", limits, &new.limits);
        self.place("http.login_limits", login_limits, &new.login_limits);
    }

    fn cache(&mut self, old: &cache::Config, new: &cache::Config) {
        let cache::Config { max_bytes, min_free, lease, complete, scrub } = old;
        self.place("cache.max_bytes", max_bytes, &new.max_bytes);
        self.place("cache.min_free", min_free, &new.min_free);
        self.place("cache.lease_seconds", lease, &new.lease);
        self.place("cache.complete", complete, &new.complete);
        self.place("cache.scrub", scrub, &new.scrub);
    }

    fn upstreams(&mut self, old: &[upstream::Config], new: &[upstream::Config]) {
        let find = |all: &[upstream::Config], registry: &Registry| {
            all.iter().find(|upstream| upstream.registry == *registry).cloned()
        };
        for upstream in new {
            let registry = &upstream.registry;
            match find(old, registry) {
                None => self.in_place.push(format!("upstream {registry}: new")),
                Some(old) => self.place(&format!("upstream {registry}"), &old, upstream),
            }
        }
        for gone in old.iter().filter(|old| find(new, &old.registry).is_none()) {
            self.in_place.push(format!("upstream {}: gone", gone.registry));
        }
    }
}

/// A value as it would be written, more or less.
fn show(value: &impl Debug) -> String {
    let text = format!("{value:?}");
    let inner = text.strip_prefix("Some(").and_then(|text| text.strip_suffix(')'));
    inner.unwrap_or(if text == "None" { "nothing" } else { &text }).to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::raw::RawConfig;
    use super::super::settle::PUBLIC_REGISTRIES;
    use super::*;

    #[test]
    fn every_change_has_its_name_and_some_need_a_restart() {
        let read = |text: &str| Config::settle(RawConfig::parse(text).unwrap()).unwrap();
        let tls = "[http]\ntls = { cert = '/a', key = '/b' }";
        let upstream = "[[upstream]]\nregistry = 'a.example'\nendpoints = ['https://a.example']";
        let check = |old: &str, new: &str, in_place: &[&str], by_restart: &[&str]| {
            let changes = Changes::between(&read(old), &read(new));
            assert_eq!(changes.in_place, in_place, "{old:?} → {new:?}");
            let keys = changes.by_restart.iter().map(|text| text.split(' ').next().unwrap());
            assert_eq!(keys.collect::<Vec<_>>(), by_restart, "{old:?} → {new:?}");
        };
        check("", "", &[], &[]);
        check("data_dir = '/x'", "data_dir = '/y'", &[], &["data_dir"]);
        check("", "data_mode = '0750'", &[], &["data_mode"]);
        let keys = ["default_upstream", "offline", "public_registries"].map(str::to_owned);
        let gone = PUBLIC_REGISTRIES.map(|(registry, _)| format!("upstream {registry}: gone"));
        let changed: Vec<_> = keys.iter().chain(&gone).map(String::as_str).collect();
        let apart = "default_upstream = 'none'\noffline = true\npublic_registries = false";
        check("", apart, &changed, &[]);
        check(
            "",
            "[http]\nlisten = ['127.0.0.1:1']\nhosts = ['h']\nlist_private = true",
            &["http.hosts", "http.list_private"],
            &["http.listen"],
        );
        check(
            "",
            "[http]\nallow = ['10.0.0.0/8']\nhtpasswd = '/h'\naccess_log = false\ndrain_seconds = 1\nlimits.connections = 1",
            &["http.allow", "http.htpasswd", "http.access_log", "http.drain_seconds", "http.limits"],
            &[],
        );
        check("", tls, &[], &["http.tls"]);
        check(tls, "", &[], &["http.tls"]);
        check(tls, &tls.replace("/a", "/c"), &["http.tls"], &[]);
        check(tls, &tls.replace("'/b'", "'/b', client_ca = '/c'"), &[], &["http.tls.client_ca"]);
        check(
            "",
            "[admin]\nlisten = '127.0.0.1:1'\nmetrics_listen = '127.0.0.1:2'\nallow = ['10.0.0.0/8']\ntoken_file = '/t'\nhosts = ['h']",
            &["admin.allow", "admin.token_file", "admin.hosts"],
            &["admin.listen", "admin.metrics_listen"],
        );
        check(
            "",
            "[cache]\nmax_bytes = '1%'\nmin_free = '1%'\nlease_seconds = 1\ncomplete = 'never'\nscrub = 'off'",
            &["cache.max_bytes", "cache.min_free", "cache.lease_seconds", "cache.complete", "cache.scrub"],
            &[],
        );
        check("", upstream, &["upstream a.example: new"], &[]);
        check(upstream, &format!("{upstream}\naliases = ['a']"), &["upstream a.example"], &[]);
        check(
            upstream,
            &upstream.replace("a.example", "b.example"),
            &["upstream b.example: new", "upstream a.example: gone"],
            &[],
        );
        check("", "[[tags]]\nmatch = '*/*:*'\n[[pin]]\nref = 'alpine:3'", &["tags", "pin"], &[]);
    }
}
