//! Every way in which clients name a repository to a mirror, and the ways in which they should not.

use proptest::prelude::*;

use super::*;
use crate::fuzz::Target;
use crate::oci::Registry;

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn known(registry: &str, aliases: &[&str], hosts: &[&str]) -> KnownRegistry {
    let owned = |texts: &[&str]| texts.iter().map(ToString::to_string).collect();
    let repositories = Repositories::default();
    KnownRegistry {
        repositories,
        registry: Registry::parse(registry).unwrap(),
        aliases: owned(aliases),
        hosts: owned(hosts),
    }
}

fn registries() -> Registries {
    let known = vec![
        known("docker.io", &["hub"], &["hub.berth.example", "hub.berth.example:8443"]),
        known("ghcr.io", &[], &["ghcr.berth.example"]),
        known("harbor.example.com", &["harbor"], &[]),
        known("registry.local:5000", &[], &[]),
        known("localhost:5000", &[], &[]),
    ];
    Registries::new(known, Some(Registry::parse("docker.io").unwrap())).unwrap()
}

/// The route of a GET of `target`, which may begin with a host: `hub.berth.example/v2/…`.
fn route(target: &str) -> Result<Route, RouteError> {
    let (host, target) = target.split_at(target.find('/').unwrap());
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    registries().route(&Method::GET, Some(host).filter(|host| !host.is_empty()), path, query)
}

/// `repository reference` of a manifest, else the error's text.
fn manifest(target: &str) -> String {
    match route(target) {
        Ok(Route::Manifest { repo, reference }) => format!("{repo} {reference}"),
        Ok(other) => format!("{other:?}"),
        Err(error) => error.to_string(),
    }
}

fn check(target: &str, expected: &str) {
    assert_eq!(manifest(target), expected, "{target}");
}

#[test]
fn every_client_reaches_docker_hub_by_its_own_path() {
    // The rows of protocol notes B.0, in their order, then what was seen on the wire.
    for target in [
        "/hub/v2/library/alpine/manifests/3?ns=docker.io",
        "/hub/library/alpine/manifests/3?ns=docker.io",
        "/hub/v2/library/alpine/manifests/3",
        "/v2/hub/library/alpine/manifests/3?ns=docker.io",
        "/v2/hub/library/alpine/manifests/3",
        "/v2/library/alpine/manifests/3?ns=docker.io",
        "/v2/library/alpine/manifests/3",
        "/v2/docker.io/library/alpine/manifests/3",
        "/docker.io/v2/library/alpine/manifests/3",
        "/docker.io/library/alpine/manifests/3",
        "/library/alpine/manifests/3?ns=docker.io",
        "/library/alpine/manifests/3",
    ] {
        check(target, "docker.io/library/alpine 3");
    }
    check("/hub/x/v2/library/busybox/manifests/1.35?ns=docker.io", "docker.io/x/library/busybox 1.35");
    check("/hub/x/v2/library/busybox/manifests/1.35", "docker.io/x/library/busybox 1.35");
    check(
        &format!("/v2/library/alpine/manifests/{DIGEST}?ns=docker.io"),
        &format!("docker.io/library/alpine {DIGEST}"),
    );
}

#[test]
fn docker_hub_goes_by_several_names_and_library_may_be_left_out() {
    for target in [
        "/v2/alpine/manifests/3",
        "/v2/hub/alpine/manifests/3",
        "/v2/alpine/manifests/3?ns=docker.io",
        "/v2/alpine/manifests/3?ns=registry-1.docker.io",
        "/v2/library/alpine/manifests/3?ns=index.docker.io",
        "/v2/library/alpine/manifests/3?ns=Docker.IO",
        "/v2/library/alpine/manifests/3?ns=hub",
        "/v2/index.docker.io/library/alpine/manifests/3",
        "/v2/index.docker.io/library/alpine/manifests/3?ns=docker.io",
        "registry-1.docker.io/v2/library/alpine/manifests/3",
        "/v2/library/alpine/manifests/3?ns=docker.io&ns=ghcr.io",
    ] {
        check(target, "docker.io/library/alpine 3");
    }
}

#[test]
fn other_registries_are_named_by_ns_path_or_host() {
    check("/v2/org/app/manifests/1?ns=ghcr.io", "ghcr.io/org/app 1");
    check("/v2/ghcr.io/org/app/manifests/1", "ghcr.io/org/app 1");
    check("/v2/ghcr.io/org/app/manifests/1?ns=ghcr.io", "ghcr.io/org/app 1");
    check("/ghcr.io/v2/org/app/manifests/1", "ghcr.io/org/app 1");
    check("ghcr.berth.example/v2/org/app/manifests/1", "ghcr.io/org/app 1");
    check("GHCR.berth.example:5000/v2/org/app/manifests/1", "ghcr.io/org/app 1");
    check("ghcr.berth.example/v2/ghcr.io/org/app/manifests/1", "ghcr.io/org/app 1");
    check("hub.berth.example:8443/v2/alpine/manifests/3", "docker.io/library/alpine 3");
    check("ghcr.io/v2/org/app/manifests/1", "ghcr.io/org/app 1");
    check("ghcr.berth.example/v2/org/app/manifests/1?ns=docker.io", "docker.io/org/app 1");
    check("127.0.0.1:5000/v2/org/app/manifests/1", "docker.io/org/app 1");
    check("[::1]:5000/v2/org/app/manifests/1", "docker.io/org/app 1");
    check("/v2/app/manifests/1?ns=registry.local:5000", "registry.local:5000/app 1");
    check("/v2/app/manifests/1?ns=registry.local%3A5000", "registry.local:5000/app 1");
    check("/v2/registry.local:5000/app/manifests/1", "registry.local:5000/app 1");
    check("/registry.local%3A5000/v2/app/manifests/1", "registry.local:5000/app 1");
    check("/v2/harbor/a/b/c/d/e/manifests/1", "harbor.example.com/a/b/c/d/e 1");
    // Its name is where berth itself may listen, so as a host it decides nothing.
    check("localhost:5000/v2/org/app/manifests/1", "docker.io/org/app 1");
    check("/v2/localhost:5000/app/manifests/1", "localhost:5000/app 1");
}

#[test]
fn only_one_prefix_is_stripped_and_only_the_deciding_one() {
    // A Harbor project may be called docker.io, as its proxy projects often are.
    check(
        "/v2/docker.io/library/alpine/manifests/3?ns=harbor.example.com",
        "harbor.example.com/docker.io/library/alpine 3",
    );
    check("/v2/harbor/docker.io/library/alpine/manifests/3", "harbor.example.com/docker.io/library/alpine 3");
    check("/harbor/v2/docker.io/library/alpine/manifests/3", "harbor.example.com/docker.io/library/alpine 3");
    check("/v2/quay.io/org/app/manifests/3?ns=harbor.example.com", "harbor.example.com/quay.io/org/app 3");
    check("/v2/harbor/harbor/app/manifests/3", "harbor.example.com/harbor/app 3");
    check("/v2/hub/org/app/manifests/3?ns=ghcr.io", "ghcr.io/hub/org/app 3");
    check("/hub/v2/org/app/manifests/3?ns=ghcr.io", "ghcr.io/hub/org/app 3");
    check("ghcr.berth.example/hub/org/app/manifests/3", "ghcr.io/hub/org/app 3");
    // With nothing behind it, a prefix is the name.
    check("/v2/hub/manifests/3", "docker.io/library/hub 3");
    check("/v2/hub/manifests/3?ns=docker.io", "docker.io/library/hub 3");
    check("/hub/v2/hub/manifests/3", "docker.io/library/hub 3");
}

#[test]
fn one_repository_has_one_name_however_its_path_is_spelt() {
    for target in [
        "/v2/library%2Falpine/manifests/3",
        "/v2/library%2falpine/manifests/3",
        "/v2/library/alpine%2Fmanifests/3",
        "/v2%2Flibrary%2Falpine%2Fmanifests%2F3",
        "/v2/%6cibrary/alpine/manifests/3",
        "/v2/library//alpine/manifests/3",
        "/v2/library/alpine//manifests///3",
        "//v2//library/alpine/manifests/3",
        "/v2/library/alpine/manifests/3/",
        "/v2/library/alpine/manifests/3//",
        "/v2/library/%2f/alpine/manifests/3%2F",
        "/v2/hub%2Flibrary/alpine/manifests/3",
        "/v2/docker.io%2Flibrary%2Falpine/manifests/3",
        "/hub//v2/library/alpine/manifests/3/?ns=docker.io",
    ] {
        check(target, "docker.io/library/alpine 3");
    }
    let blob = format!("/v2/library%2Falpine/blobs/{DIGEST}/");
    assert_eq!(route(&blob), route(&format!("/v2/library/alpine/blobs/{DIGEST}")));
    assert_eq!(route("/v2/library%2Falpine/tags//list/"), route("/v2/library/alpine/tags/list"));
}

#[test]
fn the_usual_port_of_a_registry_may_be_said() {
    for target in [
        "/v2/org/app/manifests/1?ns=ghcr.io:443",
        "/v2/org/app/manifests/1?ns=GHCR.io%3A443",
        "/v2/ghcr.io:443/org/app/manifests/1",
        "/ghcr.io:443/v2/org/app/manifests/1?ns=ghcr.io",
        "ghcr.io:443/v2/org/app/manifests/1",
    ] {
        check(target, "ghcr.io/org/app 1");
    }
    let own = vec![
        known("x.example:443", &[], &[]),
        known("y.example:443", &[], &[]),
        known("y.example", &[], &[]),
    ];
    let registries = Registries::new(own, None).unwrap();
    let meant = |ns: &str| registries.meant(None, "/v2/a/manifests/1", Some(&format!("ns={ns}"))).unwrap();
    assert_eq!((&*meant("x.example"), &*meant("x.example:443")), ("x.example:443", "x.example:443"));
    assert_eq!((&*meant("y.example"), &*meant("y.example:443")), ("y.example", "y.example:443"));
}

#[test]
fn what_cannot_be_routed_still_means_a_registry() {
    let meant = |target: &str| {
        let (path, query) =
            target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
        registries().meant(None, path, query)
    };
    let check =
        |target: &str, expected: Option<&str>| assert_eq!(meant(target).as_deref(), expected, "{target}");
    check("/v2/org/app/manifests/1?ns=quay.io", Some("quay.io"));
    check("/v2/quay.io/org/app/manifests/1", Some("quay.io"));
    check("/v2/ghcr.io/Org/app/manifests/1", Some("ghcr.io"));
    check("/v2/a/manifests/.3", Some("docker.io"));
    check("/v2/a/blobs/x?ns=harbor", Some("harbor.example.com"));
    check("/etc/passwd", None);
    check("/v2/?ns=evil%0a", Some("evil?"));
}

#[test]
fn words_of_the_protocol_may_be_parts_of_a_name() {
    check("/v2/org/v2/app/manifests/1", "docker.io/org/v2/app 1");
    check("/v2/v2/app/manifests/1", "docker.io/v2/app 1");
    check("/v2/hub/org/v2/manifests/1", "docker.io/org/v2 1");
    check("/hub/org/v2/manifests/1", "docker.io/org/v2 1");
    check("/hub/v2/org/v2/manifests/1", "docker.io/org/v2 1");
    check("/v2/manifests/blobs/manifests/manifests", "docker.io/manifests/blobs manifests");
    check("/v2/tags/list/manifests/uploads", "docker.io/tags/list uploads");
    check("/v2/org/blobs/manifests/1", "docker.io/org/blobs 1");
}

#[test]
fn registries_that_are_not_configured_are_refused_never_the_default() {
    let unknown = |name: &str| format!("registry `{name}` is not configured on this mirror");
    check("/v2/org/app/manifests/1?ns=quay.io", &unknown("quay.io"));
    check("/v2/org/app/manifests/1?ns=ghcr.io:80", &unknown("ghcr.io:80"));
    check("/v2/org/app/manifests/1?ns=quay.io:443", &unknown("quay.io:443"));
    check("/v2/org/app/manifests/1?ns=169.254.169.254", &unknown("169.254.169.254"));
    check("/v2/org/app/manifests/1?ns=", &unknown(""));
    check("/v2/org/app/manifests/1?ns=http://x/%0a%ff", &unknown("http://x/??"));
    check("/v2/quay.io/org/app/manifests/1", &unknown("quay.io"));
    check("/quay.io/v2/org/app/manifests/1", &unknown("quay.io"));
    check("/quay.io/org/app/manifests/1", &unknown("quay.io"));
    check("/v2/localhost/app/manifests/1", &unknown("localhost"));
    check("/v2/registry.local:5001/app/manifests/1", &unknown("registry.local:5001"));
    check("/v2/x.y/manifests/1", &unknown("x.y"));
    check(&format!("/v2/org/app/manifests/1?ns={}", "a.".repeat(200)), &unknown(&"a.".repeat(32)));
    check("/v2/docker.io/manifests/1", &InvalidName::Repository.to_string());
    check("/quay.io/v2/", &unknown("quay.io"));
    check("/v2/?ns=quay.io", &unknown("quay.io"));
    check("/v2/_catalog?ns=quay.io", &unknown("quay.io"));
    check("ghcr.berth.example/v2/quay.io/app/manifests/1", "ghcr.io/quay.io/app 1");
}

#[test]
fn without_a_default_a_name_needs_its_registry() {
    let registries = Registries::new(vec![known("ghcr.io", &[], &[])], None).unwrap();
    let route = |path: &str| registries.route(&Method::GET, None, path, None);
    assert_eq!(route("/v2/library/alpine/manifests/3"), Err(RouteError::NoDefault));
    assert!(matches!(route("/v2/ghcr.io/org/app/manifests/3"), Ok(Route::Manifest { .. })));
    assert_eq!(route("/v2/"), Ok(Route::Base));
}

#[test]
fn names_cannot_climb_hide_or_grow() {
    let bad_name = InvalidName::Repository.to_string();
    for path in [
        "/v2/../../etc/passwd/manifests/3",
        "/v2/library/../../x/manifests/3",
        "/v2/library/%2e%2e/x/manifests/3",
        "/v2/a/%252e%252e/manifests/3",
        "/v2/a%2f..%2fb/manifests/3",
        "/v2/a%2F%2e%2e/manifests/3",
        "/v2/library%252falpine/manifests/3",
        "/v2/%5c/manifests/3",
        "/v2/a/%zz/manifests/3",
        "/v2/a/%/manifests/3",
        "/v2/a/%ff/manifests/3",
        "/v2/a/%00/manifests/3",
        "/v2/Library/Alpine/manifests/3",
        "/v2/_oci/manifests/3",
        "/hub/../x/manifests/3",
    ] {
        check(path, &bad_name);
    }
    check(&format!("/v2/{}a/manifests/3", "a/".repeat(127)), &format!("docker.io/{}a 3", "a/".repeat(127)));
    check(&format!("/v2/{}ab/manifests/3", "a/".repeat(127)), &bad_name);
    check(&format!("/v2/{}/manifests/3", "a".repeat(1100)), "path or query too long");
    check(&format!("/v2/a/manifests/3?ns={}", "a".repeat(1100)), "path or query too long");
    check("/v2/a/manifests/.3", &InvalidName::Tag.to_string());
    check("/v2/a/manifests/", "no such path");
    check("/v2/a/manifests/3%2f4", &InvalidName::Tag.to_string());
    check(&format!("/v2/a/manifests/{}", "x".repeat(129)), &InvalidName::Tag.to_string());
    check("/v2/a/manifests/sha256:00", "not a digest: expected algorithm:hex in lower case");
    check("/v2/a/blobs/x", "not a digest: expected algorithm:hex in lower case");
    check("/v2/a/referrers/blake3:00", "unsupported digest algorithm: expected sha256 or sha512");
}

#[test]
fn the_api_root_answers_below_any_prefix() {
    for target in [
        "/v2/",
        "/v2",
        "/hub/v2/",
        "/hub/v2",
        "/hub/x/v2/",
        "/docker.io/v2/",
        "/v2/?ns=docker.io",
        "x/v2/",
        "//v2/",
        "/v2//",
        "/v2%2f",
    ] {
        assert_eq!(route(target), Ok(Route::Base), "{target}");
    }
    for target in ["/", "", "/v1/", "/v2/x", "/v2/x/v2/", "/metrics", "/v2/manifests/x"] {
        let target = format!("x{target}");
        assert_eq!(
            registries().route(&Method::GET, None, &target[1..], None),
            Err(RouteError::NotFound),
            "{target}"
        );
    }
    assert_eq!(route("/v2/_oci/ext/discover"), Ok(Route::Extensions));
    let catalog = |n, last: Option<&str>| Ok(Route::Catalog { n, last: last.map(str::to_owned) });
    assert_eq!(route("/v2/_catalog"), catalog(None, None));
    assert_eq!(route("/v2/_catalog/"), catalog(None, None));
    assert_eq!(
        route("/v2/_catalog?n=5&last=docker.io%2Flibrary/a"),
        catalog(Some(5), Some("docker.io/library/a"))
    );
}

#[test]
fn lists_and_blobs_carry_their_parameters() {
    let repo = Repo::new(Registry::parse("docker.io").unwrap(), RepoName::parse("org/app").unwrap());
    let digest = Digest::parse(DIGEST).unwrap();
    let tags =
        |n, last: Option<&str>| Ok(Route::Tags { repo: repo.clone(), n, last: last.map(str::to_owned) });
    assert_eq!(route("/v2/org/app/tags/list"), tags(None, None));
    assert_eq!(route("/hub/v2/org/app/tags/list?n=0&last=3&last=4"), tags(Some(0), Some("3")));
    // As distribution.
    for (n, expected) in [("", None), ("+5", None), ("-0", Some(0)), ("%2B5", Some(5)), ("007", Some(7))] {
        let expected = if n == "+5" { Err(RouteError::Page) } else { tags(expected, None) };
        assert_eq!(route(&format!("/v2/org/app/tags/list?n={n}")), expected, "{n}");
    }
    assert_eq!(route("/v2/org/app/tags/list?n=&last="), tags(None, Some("")));
    for (bytes, expected) in [(5000, tags(None, None)), (6000, Err(RouteError::PathTooLong))] {
        assert_eq!(route(&format!("/v2/org/app/tags/list?next_page={}", "x".repeat(bytes))), expected);
    }
    for n in ["-1", "x", "1.5", "9223372036854775808", "99999999999999999999999"] {
        assert_eq!(route(&format!("/v2/org/app/tags/list?n={n}")), Err(RouteError::Page), "{n}");
    }
    let referrers = |artifact_type: Option<&str>| {
        Ok(Route::Referrers { repo: repo.clone(), digest, artifact_type: artifact_type.map(str::to_owned) })
    };
    let of = format!("/v2/org/app/referrers/{DIGEST}");
    assert_eq!(route(&of), referrers(None));
    assert_eq!(route(&format!("{of}?artifactType=")), referrers(None));
    assert_eq!(
        route(&format!("{of}?artifactType=application/x%2Bjson")),
        referrers(Some("application/x+json"))
    );
    assert_eq!(
        route(&format!("{of}?artifactType=application/x+json")),
        referrers(Some("application/x+json"))
    );
    let blob = Ok(Route::Blob { repo: repo.clone(), digest });
    assert_eq!(route(&format!("/v2/org/app/blobs/{}", DIGEST.replace(':', "%3A"))), blob);
}

#[test]
fn what_would_change_a_registry_is_not_done_here() {
    let route = |method: Method, path: &str| registries().route(&method, None, path, Some("ns=quay.io"));
    let upload = "/v2/org/app/blobs/uploads/";
    for (method, path) in [
        (Method::POST, upload),
        (Method::POST, "/hub/org/app/blobs/uploads"),
        (Method::PATCH, "/v2/org/app/blobs/uploads/0-1-2"),
        (Method::PUT, "/v2/org/app/manifests/1"),
        (Method::DELETE, "/v2/org/app/manifests/1"),
        (Method::POST, "/v2/"),
        (Method::OPTIONS, "/v2/_catalog"),
    ] {
        assert_eq!(route(method, path), Err(RouteError::Method), "{path}");
    }
    assert_eq!(route(Method::POST, "/login"), Err(RouteError::NotFound));
    assert_eq!(registries().route(&Method::GET, None, upload, None), Err(RouteError::NotFound));
}

#[test]
fn names_that_mean_two_registries_are_refused() {
    let check = |known: Vec<KnownRegistry>, expected: &str| {
        assert_eq!(Registries::new(known, None).map_err(|error| error.to_string()).err().unwrap(), expected);
    };
    check(vec![known("a.io", &["x"], &[]), known("b.io", &["X"], &[])], "`x` means both a.io and b.io");
    check(vec![known("a.io", &["b.io"], &[]), known("b.io", &[], &[])], "`b.io` means both b.io and a.io");
    check(vec![known("a.io", &[], &["h"]), known("b.io", &[], &["h"])], "`h` means both a.io and b.io");
    check(vec![known("a.io", &[], &["h/x"])], "host `h/x` of a.io: expected host[:port]");
    for alias in ["v2", "a/b", "", "..", "_x"] {
        let text =
            format!("alias `{alias}` of a.io: expected one lower-case word, or a host, other than `v2`");
        check(vec![known("a.io", &[alias], &[])], &text);
    }
    let default = Registries::new(vec![known("a.io", &["a.io"], &["a.io"])], Registry::parse("b.io").ok());
    assert_eq!(default.err().unwrap().to_string(), "the default registry b.io is not configured");
    let own = vec![known("a.io", &["index.docker.io"], &[]), known("docker.io", &[], &[])];
    let registries = Registries::new(own, None).unwrap();
    let of_a = registries.route(&Method::GET, None, "/v2/index.docker.io/x/manifests/1", None);
    assert!(matches!(of_a, Ok(Route::Manifest { repo, .. }) if repo.to_string() == "a.io/x"));
}

proptest! {
    #[test]
    fn nothing_panics(host in proptest::option::of(".*"), path in ".*", query in proptest::option::of(".*")) {
        let _ = registries().route(&Method::GET, host.as_deref(), &path, query.as_deref());
    }

    #[test]
    fn near_misses_do_not_panic_and_never_leave_the_configured_registries(
        path in "(/(v2|hub|docker\\.io|manifests|blobs|tags|list|uploads|%2f|\\.\\.|a|_oci|referrers|sha256:0)){0,8}/?",
        ns in proptest::option::of("(docker\\.io|hub|x|quay\\.io)"),
    ) {
        let query = ns.map(|ns| format!("ns={ns}"));
        if let Ok(Route::Manifest { repo, .. } | Route::Tags { repo, .. }) =
            registries().route(&Method::GET, None, &path, query.as_deref())
        {
            prop_assert_eq!(repo.registry.as_str(), "docker.io");
            prop_assert!(RepoName::parse(repo.name.as_str()).is_ok());
        }
    }

    #[test]
    fn every_valid_name_is_reached_below_its_registry(
        name in "[a-z0-9]{1,8}([._-][a-z0-9]{1,4})?(/[a-z0-9]{1,8}){0,5}",
        tag in "[A-Za-z0-9_][A-Za-z0-9._-]{0,127}",
    ) {
        for path in [format!("/v2/ghcr.io/{name}/manifests/{tag}"), format!("/ghcr.io/v2/{name}/manifests/{tag}")] {
            prop_assert_eq!(manifest(&path), format!("ghcr.io/{name} {tag}"));
        }
    }
}

/// What paths, queries and hosts are made of.
const WORDS: [&str; 39] = [
    "/",
    "//",
    "/v2/",
    "/v2",
    "hub",
    "docker.io",
    "ghcr.io",
    "registry.local:5000",
    "localhost",
    "harbor",
    "a",
    "library",
    "..",
    ".",
    "%2e%2e",
    "%2f",
    "%",
    "%00",
    "_oci",
    "_catalog",
    "/manifests/",
    "/blobs/",
    "/tags/list",
    "/referrers/",
    "/blobs/uploads/",
    "latest",
    DIGEST,
    "sha256:",
    "sha512:",
    "\n",
    "?",
    "&",
    "ns=",
    "n=",
    "last=",
    "artifactType=",
    "hub.berth.example:8443",
    "ghcr.berth.example",
    "[::1]:5000",
];

#[test]
fn fuzzed_requests_mean_a_configured_registry_or_nothing() {
    let target = Target { name: "route", words: &WORDS };
    let registries = registries();
    let configured = ["docker.io", "ghcr.io", "harbor.example.com", "registry.local:5000", "localhost:5000"];
    target.holds(|input| {
        let text = String::from_utf8_lossy(input);
        let mut lines = text.splitn(3, '\n');
        let (path, query, host) = (lines.next().unwrap_or_default(), lines.next(), lines.next());
        let (repo, digest) = match registries.route(&Method::GET, host, path, query) {
            Ok(Route::Manifest { repo, reference: Reference::Digest(digest) }) => (repo, Some(digest)),
            Ok(Route::Manifest { repo, reference: Reference::Tag(tag) }) => {
                assert!(!tag.as_str().contains('/') && !tag.as_str().starts_with('.'));
                (repo, None)
            }
            Ok(Route::Blob { repo, digest } | Route::Referrers { repo, digest, .. }) => (repo, Some(digest)),
            Ok(Route::Tags { repo, .. }) => (repo, None),
            Ok(Route::Base | Route::Catalog { .. } | Route::Extensions) => return,
            Err(error) => return assert!(error.to_string().len() < 1000),
        };
        assert!(configured.contains(&repo.registry.as_str()), "{repo}");
        assert_eq!(RepoName::parse(repo.name.as_str()).as_ref(), Ok(&repo.name));
        let folder = repo.registry.to_folder();
        for word in repo.name.as_str().split('/').chain([&*folder]) {
            assert!(
                !word.is_empty() && !word.starts_with(['.', '_']) && !word.contains(['/', '\\', '\0']),
                "{repo}"
            );
        }
        assert_eq!(Registry::from_folder(&folder), Some(repo.registry));
        assert!(digest.is_none_or(|digest| Digest::parse(&digest.to_string()) == Ok(digest)));
    });
}
