//! Documents that a hostile registry, a client or another program wrote (F5, F7, F24): whatever they say, they cost
//! little more than their bytes, hold nobody else up, and the limits are far from what real images have.

use std::collections::HashMap;

use bytes::Bytes;
use serde_json::{Value, json};

use crate::support::{
    Berth, Fault, Gate, Image, Reply, Upstream, eventually, folder, process, together, within_deadline,
};

const REPO: &str = "library/app";
/// Longest body of a document that berth reads.
const DOCUMENT_BYTES: usize = 4 * 1024 * 1024;
/// What 24 of the worst may make of the daemon, everything included.
const RESIDENT_MAX: u64 = 200 * 1024 * 1024;
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";

/// A document as long as it may be: `start`, `piece` as often as it fits, `end`.
fn full(start: &str, piece: &str, end: &str) -> Bytes {
    let room = DOCUMENT_BYTES - start.len() - end.len();
    let mut text = String::with_capacity(DOCUMENT_BYTES);
    text.push_str(start);
    for _ in 0..room / piece.len() {
        text.push_str(piece);
    }
    text.push_str(end);
    text.into()
}

/// A document as long as it may be, of as many different members as fit.
fn with_members(start: &str, value: &str, end: &str) -> Bytes {
    let mut text = String::with_capacity(DOCUMENT_BYTES);
    text.push_str(start);
    for number in 0.. {
        let member = format!("\"{number:x}\":{value},");
        if text.len() + member.len() + end.len() > DOCUMENT_BYTES {
            break;
        }
        text.push_str(&member);
    }
    (text + end).into()
}

/// Manifests and lists as nobody but an attacker writes them.
fn manifests() -> Vec<Bytes> {
    let image_end = "],\"config\":{}}";
    let deep = |open: &str, close: &str| {
        let depth = (DOCUMENT_BYTES - 40) / (open.len() + close.len());
        let text = format!("{{\"x\":{}1{},\"manifests\":[]}}", open.repeat(depth), close.repeat(depth));
        Bytes::from(text)
    };
    vec![
        full("{\"manifests\":[{}", ",{}", "]}"),
        full("{\"layers\":[{}", ",{}", image_end),
        full("{\"manifests\":[0", ",0", "]}"),
        full("{\"layers\":[null", ",null", image_end),
        full("{\"manifests\":[{\"platform\":{\"os\":\"linux\"}}", ",{\"platform\":{\"os\":\"linux\"}}", "]}"),
        full("{\"manifests\":[{\"urls\":[\"\"", ",\"\"", "]}]}"),
        full("{\"layers\":[],\"config\":[[]", ",[]", "]}"),
        full("{\"layers\":[],\"subject\":{\"digest\":[[]", ",[]", "]},\"config\":{}}"),
        with_members("{\"layers\":[],\"config\":{},\"annotations\":{", "\"\"", "\"\":\"\"}}"),
        with_members("{\"manifests\":[{\"annotations\":{", "\"\"", "\"\":\"\"}}]}"),
        with_members("{\"manifests\":[],", "[]", "\"\":0}"),
        full("{\"manifests\":[]", ",\"manifests\":[]", "}"),
        full("{\"manifests\":[{\"digest\":\"\"", ",\"digest\":\"\"", "}]}"),
        deep("[", "]"),
        deep("{\"a\":", "}"),
        full("{\"mediaType\":\"", "\\u0041", "\",\"manifests\":[]}"),
        full("{\"artifactType\":\"", "\\ud83d\\ude00", "\",\"manifests\":[]}"),
        full("{\"mediaType\":\"", "\\ud83d", "\",\"manifests\":[]}"),
        full("{\"schemaVersion\":", "9", ",\"manifests\":[]}"),
        full("{\"manifests\":[{\"size\":0.", "9", "}]}"),
        full("{\"", "\\u006d", "\":[],\"manifests\":[]}"),
        full("{\"manifests\":[]", " ", "}"),
        full("[", "[],", "[]]"),
        full("<html>", "<p>", "</html>"),
    ]
}

/// Lists of tags, in the same way.
fn tags() -> Vec<Bytes> {
    vec![
        full("{\"tags\":[\"a\"", ",\"a\"", "]}"),
        full("{\"tags\":[[]", ",[]", "]}"),
        full("{\"tags\":[\"", "\\u0061", "\"]}"),
        full("{\"tags\":[]", ",\"tags\":[]", "}"),
        full("{\"tags\":[null", ",null", "]}"),
        with_members("{\"tags\":[],", "{}", "\"\":0}"),
    ]
}

/// Has everything under this path answered with this.
fn say(upstream: &Upstream, path: &str, media_type: &'static str, body: &Bytes) {
    upstream.on("*", path).fault(Fault::Content(media_type, body.clone()));
}

/// A hostile registry `evil.test` beside an honest one, of which one image is here and one is not.
async fn beside() -> (Upstream, Upstream, Berth, [Image; 2]) {
    let (honest, evil) = (Upstream::start().await, Upstream::start().await);
    let images = [Image::of(1, &[300_000, 10]), Image::of(2, &[300_000, 10])];
    honest.image(REPO, "1", &images[0]).image(REPO, "2", &images[1]);
    let berth = Berth::with("docker.io", &honest).and("evil.test", &evil).start().await;
    berth.pull(REPO, "1", &images[0]).await;
    (honest, evil, berth, images)
}

/// Asks for so many hostile documents at once, and pulls from the honest registry meanwhile.
async fn attack(berth: &Berth, images: &[Image; 2], paths: Vec<String>) -> Vec<Reply> {
    let asks: Vec<_> = paths.iter().map(|path| berth.get(path)).collect();
    let count = asks.len();
    let attack = tokio::spawn(together(count, move |at| asks[at].clone().into_future()));
    berth.pull(REPO, "1", &images[0]).await;
    berth.pull(REPO, "2", &images[1]).await;
    within_deadline("every answer", attack).await.unwrap()
}

fn assert_small(berth: &Berth) {
    let resident = berth.peak_memory();
    assert!(resident < RESIDENT_MAX, "{} MiB resident", resident >> 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_manifests_cost_little_more_than_their_bytes() {
    let (_honest, evil, berth, images) = beside().await;
    let documents = manifests();
    let image_like = |body: &[u8]| body.starts_with(b"{\"layers\"");
    for (number, body) in documents.iter().enumerate() {
        let media_type = if image_like(body) { IMAGE } else { INDEX };
        say(&evil, &format!("/manifests/hostile-{number}."), media_type, body);
    }
    let paths = |of: &dyn Fn(usize) -> String| (0..documents.len()).map(of).collect::<Vec<_>>();
    let path = |number: usize| format!("/v2/evil.test/x/manifests/hostile-{number}.");
    attack(&berth, &images, paths(&path)).await;
    assert_small(&berth);
    // The worst, 24 times.
    for worst in [0, 1, 4, 8] {
        let media_type = if image_like(&documents[worst]) { IMAGE } else { INDEX };
        say(&evil, &format!("/manifests/worst-{worst}-"), media_type, &documents[worst]);
        let path = |number: usize| format!("/v2/evil.test/y/manifests/worst-{worst}-{number}");
        attack(&berth, &images, (0..24).map(path).collect()).await;
        assert_small(&berth);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_lists_cost_little_more_than_their_bytes() {
    let (_honest, evil, berth, images) = beside().await;
    let (tags, manifests) = (tags(), manifests());
    let mut paths = Vec::new();
    for (number, body) in tags.iter().enumerate() {
        say(&evil, &format!("/tags-{number}/tags/list"), "application/json", body);
        paths.extend((0..4).map(|_| format!("/v2/evil.test/tags-{number}/tags/list")));
    }
    attack(&berth, &images, paths).await;
    assert_small(&berth);
    let mut paths = Vec::new();
    for (number, body) in manifests.iter().enumerate() {
        say(&evil, &format!("/list-{number}/referrers/"), INDEX, body);
        let digest = images[0].digest();
        paths.push(format!("/v2/evil.test/list-{number}/referrers/{digest}?artifactType=zz"));
    }
    for paths in [paths.clone(), paths] {
        attack(&berth, &images, paths).await;
        assert_small(&berth);
    }
}

/// An index of so many children, made as long as it may be by their annotations.
fn long_list(children: usize, artifact_type: &str) -> Bytes {
    let note = "x".repeat(DOCUMENT_BYTES / children - 260);
    let entry = |number: usize| {
        json!({
            "mediaType": IMAGE, "digest": format!("sha256:{number:064x}"), "size": 1000,
            "artifactType": artifact_type, "annotations": { "n": note },
        })
    };
    let entries: Vec<_> = (0..children).map(entry).collect();
    let list = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries }).to_string();
    assert!((DOCUMENT_BYTES / 2..DOCUMENT_BYTES).contains(&list.len()));
    list.into()
}

/// What comes of some work, and for how many ticks of the clock each thread of a berth ran meanwhile, if for any.
async fn ticks_of<T>(berth: &Berth, work: impl Future<Output = T>) -> (T, HashMap<u32, u64>) {
    let before = process::thread_ticks(berth.pid());
    let done = work.await;
    let mut ticks = process::thread_ticks(berth.pid());
    ticks.iter_mut().for_each(|(thread, ticks)| *ticks -= before.get(thread).unwrap_or(&0));
    ticks.retain(|_, ticks| *ticks > 0);
    (done, ticks)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_of_a_long_list_delays_no_hit() {
    const FILTERS: usize = 64;
    let (_honest, evil, berth, images) = beside().await;
    let list = long_list(9_000, "a/b");
    say(&evil, "/referrers/", INDEX, &list);
    let path = format!("/v2/evil.test/x/referrers/{}", images[0].digest());
    assert_eq!(berth.get(&path).await.expect(200), &list);
    let filtered = berth.get(&format!("{path}?artifactType=a/b")).await;
    assert_eq!(filtered.json()["manifests"].as_array().unwrap().len(), 9_000);
    let ask = berth.get(&format!("{path}?artifactType=zz"));
    let replies = together(FILTERS, move |_| ask.clone().into_future());
    let (replies, filtering) = ticks_of(&berth, replies).await;
    for reply in replies {
        assert_eq!(reply.header("oci-filters-applied"), Some("artifactType"));
        assert_eq!(reply.json()["manifests"], json!([]));
    }
    let hit = berth.get(&format!("/v2/{REPO}/manifests/{}", images[0].digest()));
    hit.clone().await.expect(200);
    let (_, serving) = ticks_of(&berth, together(500, move |_| hit.clone().into_future())).await;
    let all: u64 = filtering.values().sum();
    let of_threads_that_serve = filtering.iter().filter(|(thread, _)| serving.contains_key(*thread));
    let theirs: u64 = of_threads_that_serve.map(|(_, ticks)| ticks).sum();
    assert!(!serving.is_empty() && theirs < all / 2, "{theirs} of {all} ticks: {filtering:?}, {serving:?}");
    assert_small(&berth);
}

/// What an `index.json` names by these tags.
fn named(berth: &Berth, registry: &str) -> Vec<String> {
    let path = folder::layout(berth.data_dir(), registry).join("index.json");
    let Ok(text) = std::fs::read(path) else { return Vec::new() };
    let index: Value = serde_json::from_slice(&text).unwrap();
    let name =
        |entry: &Value| entry["annotations"]["org.opencontainers.image.ref.name"].as_str().map(str::to_owned);
    index["manifests"].as_array().unwrap().iter().filter_map(name).collect()
}

#[tokio::test]
async fn what_an_index_names_is_read_once() {
    const INDEXES: usize = 4;
    let evil = Upstream::start().await;
    // What is read to find damaged files is none of this.
    let berth = Berth::with("evil.test", &evil).sections("[cache]\nscrub = \"off\"\n").start().await;
    let index = long_list(9_000, "a/b");
    for number in 0..INDEXES {
        let body = String::from_utf8(index.to_vec()).unwrap().replacen("a/b", &format!("{number}/b"), 1);
        say(&evil, &format!("/manifests/large-{number}"), INDEX, &body.into());
        berth.get(&format!("/v2/evil.test/x/manifests/large-{number}")).await.expect(200);
    }
    let until_named = async |tag: &str| {
        let tag = tag.to_owned();
        eventually("the layout follows", async || named(&berth, "evil.test/x").contains(&tag)).await;
    };
    for number in 0..INDEXES {
        until_named(&format!("large-{number}")).await;
    }
    let before = process::read_bytes(berth.pid());
    for number in 0..3 {
        let tag = format!("small-{number}");
        evil.image("x", &tag, &Image::of(number, &[10]));
        berth.get(&format!("/v2/evil.test/x/manifests/{tag}")).await.expect(200);
        until_named(&tag).await;
    }
    let read = process::read_bytes(berth.pid()) - before;
    assert!(read < index.len() as u64, "{read} bytes were read for three small images");
}

#[tokio::test]
async fn an_index_json_beyond_the_limits_is_left_as_it_is() {
    let (honest, _evil, mut berth, images) = beside().await;
    let path = folder::layout(berth.data_dir(), "docker.io/library/app").join("index.json");
    eventually("the layout", async || path.exists()).await;
    berth.stop().await;
    let hostile = full("{\"manifests\":[{\"annotations\":[[]", ",[]", "]}]}");
    process::write(&path, &hostile);
    berth.start_again().await;
    berth.pull(REPO, "1", &images[0]).await;
    berth.pull(REPO, "2", &images[1]).await;
    berth.until_logged("cannot render a layout").await;
    assert_eq!(std::fs::read(&path).unwrap(), hostile);
    assert_small(&berth);
    honest.stop().await;
    berth.pull(REPO, "2", &images[1]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_that_never_end_hold_up_only_their_own_registry() {
    let (honest, evil, berth, images) = beside().await;
    let gate = Gate::new();
    say(&evil, "/manifests/", INDEX, &long_list(9_000, "a/b"));
    evil.on("GET", "/manifests/").fault(Fault::HoldAfter(200_000, gate.clone()));
    let asks: Vec<_> = (0..24).map(|at| berth.get(&format!("/v2/evil.test/x/manifests/{at}"))).collect();
    let held = tokio::spawn(together(24, move |at| asks[at].clone().into_future()));
    eventually("they come", async || evil.count("GET", "/manifests/") >= 7).await;
    // A large one of another registry finds room, and one more after it.
    for tag in ["large-1", "large-2"] {
        say(&honest, &format!("/manifests/{tag}"), INDEX, &long_list(8_000, tag));
        berth.get(&format!("/v2/{REPO}/manifests/{tag}")).await.expect(200);
    }
    berth.pull(REPO, "2", &images[1]).await;
    assert!(!held.is_finished(), "they were not held");
    gate.open();
    within_deadline("every answer", held).await.unwrap();
    assert_small(&berth);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limits_are_far_from_what_real_images_have() {
    let upstream = Upstream::start().await;
    let children: Vec<_> = (0..500).map(|seed| Image::of(seed, &[])).collect();
    let index = Image::index(&children.iter().collect::<Vec<_>>());
    let image = Image::of(1000, &[20; 1000]);
    upstream.image(REPO, "index", &index).image(REPO, "image", &image);
    let berth = Berth::with("docker.io", &upstream).start().await;
    berth.pull(REPO, "index", &index).await;
    berth.pull(REPO, "image", &image).await;
    upstream.stop().await;
    berth.pull(REPO, "index", &index).await;
    berth.pull(REPO, "image", &image).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_of_very_many_tags_is_listed_by_pages() {
    const TAGS: usize = 150_000;
    for page_size in [1000, usize::MAX] {
        let upstream = Upstream::start().await;
        upstream.tags(REPO, (0..TAGS).map(|tag| format!("v{tag:06}-release")), &Image::of(1, &[10]));
        upstream.page_size(page_size);
        let berth = Berth::with("docker.io", &upstream).start().await;
        let mut path = format!("/v2/{REPO}/tags/list?n=1000");
        let mut listed = 0;
        // The first pages, some within and the last, as a client goes from one to the next.
        for from in [0, 75_000, TAGS - 2500] {
            if from > 0 {
                path = format!("/v2/{REPO}/tags/list?n=1000&last=v{:06}-release", from - 1);
                listed = from;
            }
            for _ in 0..3 {
                let reply = berth.get(&path).await;
                let expected = (listed..TAGS.min(listed + 1000)).map(|tag| format!("v{tag:06}-release"));
                assert_eq!(reply.json()["tags"], json!(expected.collect::<Vec<_>>()));
                listed += 1000;
                let Some(link) = reply.header("link") else { break };
                path = link.trim_start_matches('<').split('>').next().unwrap().to_owned();
            }
        }
        assert!(listed >= TAGS, "it ends");
        assert_small(&berth);
    }
}
