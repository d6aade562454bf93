//! Lists of tags page by page (B1): whatever leads a registry's clients from one page to the next leads berth's there too,
//! and what they have at the end is the registry's list, entry by entry, or an error.

use bytes::Bytes;
use serde_json::json;

use crate::support::{Berth, Fault, Image, Paging, Reply, Setup, Upstream, file_of};

const REPO: &str = "team/app";
const PATH: &str = "/v2/team/app/tags/list";
const JSON: &str = "application/json";
/// What a daemon may need for the longest list, everything included.
const RESIDENT_MAX: u64 = 150 * 1024 * 1024;

fn names(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("v{number:06}-release")).collect()
}

/// A registry with so many tags, which pages them in this way.
async fn registry(count: usize, page_size: usize, paging: Paging) -> (Upstream, Vec<String>) {
    let upstream = Upstream::start().await;
    let names = names(count);
    upstream.tags(REPO, names.iter().cloned(), &Image::of(1, &[10])).page_size(page_size).paging(paging);
    (upstream, names)
}

/// A registry of 250 tags in pages of 100, and a berth that asks it.
async fn paged(paging: Paging) -> (Upstream, Berth, Vec<String>) {
    let (upstream, names) = registry(250, 100, paging).await;
    let berth = setup(&upstream).start().await;
    (upstream, berth, names)
}

fn setup(upstream: &Upstream) -> Setup {
    Berth::with("r.example", upstream)
        .keys("timeouts = { header_seconds = 4, idle_seconds = 1, budget_seconds = 8 }")
}

/// Where the `Link` to the next page leads, as any client finds out.
fn next(reply: &Reply) -> Option<String> {
    let link = reply.header("link")?;
    let target = link.strip_prefix('<').and_then(|link| link.strip_suffix(">; rel=\"next\""));
    let target = target.unwrap_or_else(|| panic!("{link}"));
    assert!(target.starts_with('/') && target.contains("/tags/list?"), "{target}");
    Some(target.to_owned())
}

fn tags(reply: &Reply) -> Vec<String> {
    serde_json::from_value(reply.json()["tags"].clone()).unwrap()
}

/// All pages of a list from this path on, or the first that is none.
async fn list(berth: &Berth, path: &str) -> Result<Vec<String>, Reply> {
    let (mut all, mut path) = (Vec::new(), path.to_owned());
    for _ in 0..1000 {
        let reply = berth.get(&path).await;
        if reply.status != 200 || !reply.complete {
            return Err(reply);
        }
        all.extend(tags(&reply));
        match next(&reply) {
            Some(next) => path = next,
            None => return Ok(all),
        }
    }
    panic!("it goes round: {path}");
}

#[tokio::test]
async fn a_list_is_the_registrys_whatever_its_cursors_are() {
    for paging in Paging::ALL {
        let (upstream, names) = registry(2_500, 100, paging).await;
        let berth = setup(&upstream).start().await;
        for path in [
            format!("{PATH}?n=10000"),
            format!("{PATH}?n=100"),
            PATH.to_owned(),
            format!("{PATH}?ns=r.example&n=1000"),
            "/r.example/v2/team/app/tags/list?n=70".to_owned(),
        ] {
            upstream.forget();
            let listed = list(&berth, &path).await.unwrap_or_else(|reply| panic!("{paging:?} {reply:?}"));
            assert_eq!(listed, names, "{paging:?} {path}");
            let pages = if path.ends_with("=70") { 36 } else { 25 };
            assert_eq!(upstream.requests().len(), pages, "{paging:?} {path}: one request for a page");
        }
    }
}

#[tokio::test]
async fn the_registry_gets_its_own_cursor_back_and_nothing_of_berths() {
    for paging in Paging::ALL {
        let (upstream, berth, _) = paged(paging).await;
        let first = berth.get(&format!("{PATH}?n=100&ns=r.example")).await;
        let second = next(&first).unwrap();
        berth.get(&second).await.expect(200);
        let sent = upstream.requests()[1].target.clone();
        let direct = crate::support::get(format!("{}{PATH}?n=100", upstream.url())).await;
        let own = direct.header("link").unwrap().rsplit_once('?').unwrap().1.to_owned();
        let own = own.split('>').next().unwrap();
        assert_eq!(sent, format!("{PATH}?{own}"), "{paging:?}");
        assert!(second.contains(own), "{paging:?}: {second}");
    }
}

#[tokio::test]
async fn pages_go_through_berths_behind_berths() {
    for paging in [Paging::Last, Paging::NextPage, Paging::Offset, Paging::Token] {
        let (upstream, names) = registry(250, 100, paging).await;
        let site = Berth::with("docker.io", &upstream).start().await;
        let parents = format!("[parents]\nendpoints = [\"http://{}\"]\nonly = true", site.address());
        let node = Berth::with("docker.io", &upstream).sections(&parents).start().await;
        upstream.forget();
        let listed = list(&node, &format!("{PATH}?n=100")).await;
        assert_eq!(listed.unwrap_or_else(|reply| panic!("{paging:?} {reply:?}")), names, "{paging:?}");
        assert_eq!(upstream.requests().len(), 3);
    }
}

#[tokio::test]
async fn what_fails_in_the_middle_is_an_error_and_never_an_end() {
    for paging in [Paging::Last, Paging::NextPage, Paging::Offset] {
        for fault in [
            Fault::Status(500),
            Fault::Status(404),
            Fault::Status(400),
            Fault::Status(403),
            Fault::Limited(1),
            Fault::Html,
            Fault::Hangup,
            Fault::Cut(200),
            Fault::Short(3),
            Fault::Content(JSON, Bytes::from_static(b"{\"errors\":[]}")),
            Fault::Content(JSON, Bytes::new()),
        ] {
            let (upstream, berth, _) = paged(paging).await;
            // What is stored is no rest of such a list.
            berth.get(&format!("/v2/{REPO}/manifests/v000249-release")).await.expect(200);
            let first = berth.get(&format!("{PATH}?n=100")).await;
            let second = next(&first).unwrap();
            upstream.on("GET", "/tags/list").fault(fault);
            let reply = berth.get(&second).await;
            assert!(reply.status >= 400 || !reply.complete, "{paging:?}: {reply:?}");
        }
        let (upstream, berth, _) = paged(paging).await;
        berth.get(&format!("/v2/{REPO}/manifests/v000249-release")).await.expect(200);
        let second = next(&berth.get(&format!("{PATH}?n=100")).await).unwrap();
        upstream.stop().await;
        assert_eq!(berth.get(&second).await.status, 503, "{paging:?}");
        // The first page is another matter.
        assert_eq!(tags(&berth.get(PATH).await), ["v000249-release"]);
    }
}

#[tokio::test]
async fn a_link_that_cannot_be_followed_is_an_error() {
    let (upstream, berth, _) = paged(Paging::Last).await;
    let long = format!("<{PATH}?last={}>; rel=next", "x".repeat(5000));
    for link in [
        &format!("<{PATH}>; rel=\"next\""),
        &format!("<{PATH}?n=100>; rel=\"next\""),
        "<?>; rel=next",
        "<>; rel=next",
        "<?ns=other.example&last=a>; rel=next",
        &long,
    ] {
        upstream.behave();
        upstream.on("GET", "/tags/list").fault(Fault::Header("Link", link.to_owned()));
        let reply = berth.get(&format!("{PATH}?n=100")).await;
        assert_eq!((reply.status, &*reply.error_code()), (503, "UNAVAILABLE"), "{link:.80}");
    }
    for link in ["</other>; rel=\"prev\"", "<https://docs.example/>; rel=help", "nonsense"] {
        upstream.behave();
        upstream.on("GET", "/tags/list").fault(Fault::Header("Link", link.to_owned()));
        let reply = berth.get(&format!("{PATH}?n=100")).await;
        assert_eq!((reply.status, next(&reply)), (200, None), "{link}");
    }
}

#[tokio::test]
async fn a_refused_page_size_is_left_out() {
    for status in [400, 405, 413, 416, 422] {
        let (upstream, berth, names) = paged(Paging::NextPage).await;
        upstream.on("GET", "?n=1000").fault(Fault::Status(status));
        let listed = list(&berth, &format!("{PATH}?n=1000")).await;
        assert_eq!(listed.unwrap_or_else(|reply| panic!("{status} {reply:?}")), names);
        let asked: Vec<_> = upstream.requests().iter().map(|request| request.target.clone()).collect();
        assert_eq!(asked[..2], [format!("{PATH}?n=1000"), PATH.to_owned()], "{status}");
        assert_eq!(asked.len(), 4);
    }
    // A client's own place stays.
    let (upstream, berth, names) = paged(Paging::Last).await;
    upstream.on("GET", "n=1000").fault(Fault::Status(413));
    let listed = list(&berth, &format!("{PATH}?n=1000&last={}", names[49])).await.unwrap();
    assert_eq!(listed, names[50..]);
}

#[tokio::test]
async fn a_client_puts_nothing_into_the_question_but_what_it_may_ask_itself() {
    let (upstream, berth, _) = paged(Paging::Offset).await;
    let check = async |query: &str, expected: &str| {
        upstream.forget();
        let reply = berth.get(&format!("{PATH}?{query}")).await;
        reply.expect(200);
        let asked = upstream.requests()[0].target.clone();
        assert_eq!(asked.strip_prefix(PATH), Some(expected), "{query}");
        assert_eq!(upstream.requests().len(), 1);
        for name in ["x-evil", "set-cookie"] {
            assert_eq!((reply.header(name), upstream.requests()[0].header(name)), (None, None));
        }
    };
    check("n=5&evil=1&page%5Boffset%5D=200&access_token=t&scope=x&service=y", "?n=5").await;
    check("last=a%26evil%3D1&n=5", "?n=5&last=a%26evil%3D1").await;
    check("n=5&n=6&last=b&last=c", "?n=5&last=b").await;
    check("last=a%0d%0aX-Evil:%201", "?last=a%0d%0aX-Evil:%201").await;
    check("n=&last=", "").await;
    check("next_page=..%2f..%2fother%3f", "?next_page=..%2f..%2fother%3f").await;
}

#[tokio::test]
async fn a_cursor_is_good_for_its_own_list_as_it_was_sent() {
    let (upstream, berth, _) = paged(Paging::Offset).await;
    upstream.tags("team/other", names(250).into_iter(), &Image::of(1, &[10]));
    let second = next(&berth.get(&format!("{PATH}?n=100")).await).unwrap();
    upstream.forget();
    for forged in [
        second.replace("=100&sort", "=200&sort"),
        second.replace("&sort", "&sort&evil=1"),
        second.replace("?", "?evil=1&"),
        second.replace("team/app", "team/other"),
        format!("{second}A"),
        format!("{PATH}?evil=1&seal="),
    ] {
        assert_ne!(forged, second);
        let reply = berth.get(&forged).await;
        assert_eq!((reply.status, &*reply.error_code()), (400, "PAGINATION_NUMBER_INVALID"), "{forged}");
        assert_eq!((reply.header("link"), reply.header("retry-after")), (None, None));
    }
    assert!(upstream.requests().is_empty(), "nothing of it is asked");
    // As a client may write it that takes URLs apart.
    let coded = second.replace("page%5Boffset%5D", "page[offset]").replace("n=100", "n=%31%30%30");
    assert_eq!(tags(&berth.get(&coded).await), names(250)[100..200]);
}

#[tokio::test]
async fn a_cursor_goes_to_the_endpoint_that_it_is_from() {
    let [(first, names), (second, _)] =
        [registry(250, 100, Paging::Token).await, registry(250, 100, Paging::Token).await];
    let berth = Berth::with("r.example", &first).endpoint(&second).start().await;
    first.on("GET", "/tags/list").first(1).fault(Fault::Status(404));
    let page = berth.get(&format!("{PATH}?n=100")).await;
    assert_eq!(tags(&page), names[..100]);
    assert_eq!((first.count("GET", "/tags"), second.count("GET", "/tags")), (1, 1));
    let rest = list(&berth, &next(&page).unwrap()).await.unwrap();
    assert_eq!(rest, names[100..]);
    assert_eq!((first.count("GET", "/tags"), second.count("GET", "/tags")), (1, 3));
    // The other would take it for another page, or for none.
    second.stop().await;
    assert_eq!(berth.get(&next(&page).unwrap()).await.status, 503);
    assert_eq!(first.count("GET", "/tags"), 1);
}

#[tokio::test]
async fn what_registries_agree_on_goes_on_where_berth_is_another() {
    for (paging, expected) in
        [(Paging::Last, 200), (Paging::NextPage, 200), (Paging::Azure, 200), (Paging::Offset, 400)]
    {
        let (upstream, names) = registry(250, 100, paging).await;
        let (one, other) = (setup(&upstream).start().await, setup(&upstream).start().await);
        let second = next(&one.get(&format!("{PATH}?n=100")).await).unwrap();
        let reply = other.get(&second).await;
        assert_eq!(reply.status, expected, "{paging:?}");
        if expected == 200 {
            assert_eq!(tags(&reply), names[100..200], "{paging:?}");
        }
    }
}

#[tokio::test]
async fn entries_and_what_a_registry_says_besides_stay_as_they_are() {
    let (upstream, berth, _) = paged(Paging::Last).await;
    let said = json!({
        "name": "elsewhere/app", "tags": ["b", "a", "not a tag", "é\n", ""], "child": ["x"],
        "manifest": { "sha256:0": { "tag": ["a"], "name": "n", "imageSizeBytes": "1" } },
    });
    upstream.on("GET", "/tags/list").fault(Fault::Content(JSON, said.to_string().into()));
    let reply = berth.get(PATH).await;
    let mut expected = said.clone();
    expected["name"] = json!(REPO);
    assert_eq!(reply.json(), expected);
    upstream.behave();
    upstream.on("GET", "/tags/list").fault(Fault::Content(JSON, "{\"name\":\"a\",\"tags\":null}".into()));
    assert_eq!(berth.get(PATH).await.json(), json!({ "name": REPO, "tags": [] }));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_thousand_tags_are_listed_at_once_and_by_pages() {
    const TAGS: usize = 200_000;
    // As long as those of a build for each commit: 10 MB.
    let names: Vec<_> =
        (0..TAGS).map(|tag| format!("build-{tag:06}-0123456789abcdef0123456789abc")).collect();
    for page_size in [usize::MAX, 10_000] {
        for paging in [Paging::Last, Paging::NextPage] {
            let upstream = Upstream::start().await;
            upstream
                .tags(REPO, names.iter().cloned(), &Image::of(1, &[10]))
                .page_size(page_size)
                .paging(paging);
            let berth = setup(&upstream).start().await;
            let asks = (0..4).map(|_| list(&berth, PATH));
            for listed in join(asks).await {
                assert!(listed.unwrap_or_else(|reply| panic!("{:?}", reply.headers)) == names, "{paging:?}");
            }
            let head = berth.head(PATH).await;
            assert_eq!((head.status, head.body.len()), (200, 0));
            let resident = berth.peak_memory();
            assert!(resident < RESIDENT_MAX, "{} MiB resident", resident >> 20);
        }
    }
}

/// Work done at once, in this task.
async fn join<T>(work: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut done = Vec::new();
    for part in work {
        done.push(part.await);
    }
    done
}

#[tokio::test]
async fn a_long_list_that_breaks_off_is_cut_and_not_ended() {
    let (upstream, names) = registry(20_000, usize::MAX, Paging::Last).await;
    let berth = setup(&upstream).start().await;
    let whole = berth.get(PATH).await;
    assert_eq!((tags(&whole), whole.header("content-length")), (names, None));
    for fault in [Fault::Cut(300_000), Fault::Short(2), Fault::Long(1), Fault::Stall(300_000)] {
        upstream.behave();
        upstream.on("GET", "/tags/list").fault(fault.clone());
        if matches!(fault, Fault::Cut(_)) {
            upstream.on("GET", "/tags/list").fault(Fault::Chunked);
        }
        let reply = berth.get(PATH).await;
        assert_eq!(reply.status, 200);
        assert!(!reply.complete, "{} bytes", reply.body.len());
    }
    berth.until_logged("broken_off").await;
}

#[tokio::test]
async fn clients_that_read_no_long_list_hold_up_nobody() {
    const REQUESTS_AT_ONCE: usize = 2;
    let (upstream, names) = registry(250, 100, Paging::Last).await;
    let image = Image::of(2, &[3000]);
    upstream.image("team/image", "1", &image);
    let limits = format!("limits = {{ concurrent_requests = {REQUESTS_AT_ONCE} }}");
    let berth = Berth::with("r.example", &upstream).keys(&limits).start().await;
    // More than the kernel takes of it for somebody who does not read.
    let list = format!("{{\"name\":\"x\",\"tags\":[\"a\"{}]}}", ",\"a\"".repeat(10_000_000));
    upstream.on("GET", "/tags/list").first(3 * REQUESTS_AT_ONCE).fault(Fault::Content(JSON, list.into()));
    let mut held = Vec::new();
    for _ in 0..3 * REQUESTS_AT_ONCE {
        held.push(berth.get(PATH).open().await);
    }
    // Neither manifests nor short lists wait for those.
    berth.pull("team/image", "1", &image).await;
    assert_eq!(tags(&berth.get(&format!("{PATH}?n=3")).await), names[..3]);
    drop(held);
}

#[tokio::test]
async fn lists_of_what_needs_a_login_are_denied_or_shown_where_clients_are_known() {
    let upstream = Upstream::start().await;
    upstream.auth(crate::support::Auth::Basic).user("robot", "secret", "");
    upstream.image(REPO, "1", &Image::of(1, &[3000]));
    let users = file_of("alice:$2y$04$nwNYEeTCmJxkp5f0a7hx0O1RkIpVbKfJjsHhg.xXMJyH1iVGYPYYa\n");
    let with_login = || {
        Berth::with("r.example", &upstream)
            .keys("credentials = { username = \"robot\", password_env = \"ROBOT\" }")
            .env("ROBOT", "secret")
    };
    for (http, expected) in [
        ("", 403),
        ("allow = [\"0.0.0.0/0\"]", 403),
        ("allow = [\"127.0.0.0/8\"]", 200),
        ("allow = [\"127.0.0.0/8\"]\nlist_private = false", 403),
        ("list_private = true", 200),
        (&format!("htpasswd = {users:?}\nlist_private = false"), 401),
    ] {
        let berth = with_login().http(http).start().await;
        if expected != 401 {
            berth.get(&format!("/v2/{REPO}/manifests/1")).await.expect(200);
        }
        let reply = berth.get(PATH).await;
        assert_eq!(reply.status, expected, "{http}");
        match expected {
            200 => assert_eq!(tags(&reply), ["1"]),
            403 => {
                assert_eq!(reply.error_code(), "DENIED");
                assert!(reply.text().contains("list_private"), "{}", reply.text());
            }
            _ => {}
        }
        let catalog = berth.get("/v2/_catalog").await;
        assert_eq!(catalog.text().contains(REPO), expected == 200, "{http}");
    }
}

#[tokio::test]
async fn an_upstreams_refusal_to_list_is_one_that_clients_know() {
    let (upstream, berth, _) = paged(Paging::Last).await;
    for status in [401, 403] {
        upstream.behave();
        upstream.on("GET", "/tags/list").fault(Fault::Status(status));
        let reply = berth.get(PATH).await;
        assert_eq!((reply.status, &*reply.error_code()), (403, "DENIED"), "{status}");
    }
    upstream.behave();
    let reply = berth.get("/v2/team/none/tags/list").await;
    assert_eq!((reply.status, &*reply.error_code()), (404, "NAME_UNKNOWN"));
}
