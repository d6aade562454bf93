//! nginx, over static files and as a cache.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use super::{Kind, Server, free_address, run};
use crate::scene::{Page, Scene};
use crate::support::process::write;

/// With every page as a file, and the page's own headers.
pub(super) fn of_files(scene: &Scene) -> Server {
    let mut locations = "location / { root root; }\n".to_owned();
    for page in scene.pages.iter().filter(|page| !page.headers.is_empty()) {
        locations += &location(page);
    }
    start(Kind::NginxStatic, scene, &locations, |folder| lay_out(folder, &scene.pages))
}

/// With `proxy_cache_lock`, so that a crowd makes one request.
pub(super) fn cache(scene: &Scene) -> Server {
    let location = format!(
        "location / {{ proxy_pass {}; proxy_http_version 1.1; proxy_set_header Connection ''; proxy_cache blobs; \
         proxy_cache_lock on; proxy_cache_lock_timeout 1m; proxy_cache_lock_age 1m; proxy_cache_valid 200 1d; }}",
        scene.upstream.url()
    );
    start(Kind::NginxCache, scene, &location, |_| {})
}

/// A path of its own, where the headers are told that nginx would not send or send otherwise.
fn location(page: &Page) -> String {
    let mut location =
        format!("location = {} {{ root root; etag off; types {{}} add_header Last-Modified '';", page.path);
    for (name, value) in &page.headers {
        let _ = if name.eq_ignore_ascii_case("content-type") {
            write!(location, " default_type '{value}';")
        } else {
            write!(location, " add_header {name} '{value}';")
        };
    }
    location + " }\n"
}

fn start(kind: Kind, scene: &Scene, locations: &str, prepare: impl FnOnce(&Path)) -> Server {
    let folder = tempfile::tempdir().unwrap();
    prepare(folder.path());
    let address = free_address();
    let mut configuration =
        "user root; worker_processes 1; daemon off; pid pid; events { worker_connections 1024; }\n\
         http { access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000000;\n\
         open_file_cache max=1000 inactive=1d; open_file_cache_valid 1d;\n\
         proxy_cache_path cache levels=1:2 keys_zone=blobs:10m inactive=1d max_size=8g use_temp_path=off;\n"
            .to_owned();
    for what in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        let _ = writeln!(configuration, "{what}_temp_path {what};");
    }
    let tls = scene.certificate.as_ref().map(|certificate| {
        let (cert, key) = (certificate.cert(), certificate.key());
        format!("ssl_certificate {}; ssl_certificate_key {};", cert.display(), key.display())
    });
    let speaks_tls = if tls.is_some() { " ssl" } else { "" };
    let tls = tls.unwrap_or_default();
    let _ = writeln!(
        configuration,
        "ssl_protocols TLSv1.3; server {{ listen {address}{speaks_tls}; {tls} {locations} }} }}"
    );
    write(&folder.path().join("nginx.conf"), configuration);
    let mut command = Command::new("nginx");
    command.arg("-p").arg(folder.path()).args(["-e", "errors", "-c"]).arg(folder.path().join("nginx.conf"));
    run(kind, command, address, folder)
}

/// As nginx looks for them: a file for each path.
fn lay_out(folder: &Path, pages: &[Page]) {
    for page in pages {
        let file = folder.join("root").join(page.path.trim_start_matches('/'));
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        write(&file, &page.body);
    }
}
