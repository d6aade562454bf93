//! The keys that several sections of the configuration have in common, declared once.
//!
//! `[[upstream]]`, `[[upstream.fallback]]` and `[parents]` are flat tables of their own, each of which refuses keys that it
//! does not have. serde's `flatten` would refuse none, and would lose the line that an error is about. So [`section`] puts the
//! common keys behind a section's own ones, and [`template`] takes them from there. The types of the keys are those that the
//! section's own file imports.

/// Declares a section with its own keys, and behind them those that everything has that is asked. With `@registry` it also
/// has those of a registry, which may be anywhere and belong to anybody.
macro_rules! section {
    ($(#[$attribute:meta])* pub struct $name:ident { $($own:tt)* } @registry) => {
        section! {
            $(#[$attribute])*
            pub struct $name {
                $($own)*
                /// Hosts of token servers outside its own domain. They may be sent its credentials, at any address.
                #[serde(default)]
                pub realm_hosts: Vec<HostName>,
                /// Hosts that it may redirect to at any address, such as a private object store.
                #[serde(default)]
                pub redirect_hosts: Vec<HostName>,
                /// Hosts of stores without TLS that it may redirect blobs to, although it has TLS itself: blobs are proven
                /// by their digest, and no login is sent there.
                #[serde(default)]
                pub plain_http_hosts: Vec<HostName>,
                /// The names that repositories have there, if it is itself a mirror.
                #[serde(default)]
                pub rewrite: Vec<Rewrite>,
                /// The egress proxy.
                #[serde(default)]
                pub proxy: Proxy,
                /// How much may be asked of it.
                #[serde(default)]
                pub limits: LimitsConfig,
            }
        }
    };
    ($(#[$attribute:meta])* pub struct $name:ident { $($own:tt)* }) => {
        $(#[$attribute])*
        #[derive(Clone, Debug, PartialEq, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            $($own)*
            /// The login, if it wants one.
            #[serde(default)]
            pub credentials: Option<CredentialsConfig>,
            /// PEM files of certificate authorities that are trusted besides the system's.
            #[serde(default)]
            pub ca: Vec<PathBuf>,
            /// Addresses of hosts, used instead of those in DNS.
            #[serde(default)]
            pub addresses: BTreeMap<HostName, Vec<IpAddr>>,
            /// The client certificate that its endpoints are shown in TLS.
            #[serde(default)]
            pub client_certificate: Option<ClientCertificate>,
            /// Headers that its endpoints are sent besides.
            #[serde(default)]
            pub headers: Headers,
            /// The `User-Agent` that its endpoints are sent.
            #[serde(default)]
            pub user_agent: Option<UserAgent>,
            /// How long to wait for what.
            #[serde(default)]
            pub timeouts: Timeouts,
        }
    };
}

/// The [`Config`](super::Config) of a registry at some endpoints that has the common keys of a section, and defaults
/// everywhere else.
macro_rules! template {
    ($section:expr, $registry:expr) => {{
        let section = $section;
        Config {
            credentials: section.credentials.clone(),
            ca: section.ca.clone(),
            addresses: section.addresses.clone(),
            client_certificate: section.client_certificate.clone(),
            headers: section.headers.clone(),
            user_agent: section.user_agent.clone(),
            timeouts: section.timeouts,
            ..Config::new($registry, section.endpoints.clone())
        }
    }};
    ($section:expr, $registry:expr, @registry) => {
        Config {
            realm_hosts: $section.realm_hosts.clone(),
            redirect_hosts: $section.redirect_hosts.clone(),
            plain_http_hosts: $section.plain_http_hosts.clone(),
            rewrite: $section.rewrite.clone(),
            proxy: $section.proxy.clone(),
            limits: $section.limits.clone(),
            ..template!($section, $registry)
        }
    };
}

pub(super) use {section, template};
