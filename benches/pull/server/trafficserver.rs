//! Apache Traffic Server as a reverse proxy: everything may stay in its memory cache, a crowd reads while one
//! writes, and a transfer goes on when its client leaves, as its chapter on "thundering herds" advises.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::{Kind, Server, free_address, run};
use crate::scene::Scene;
use crate::support::process::write;

const RECORDS: &str = "\
CONFIG proxy.config.admin.user_id STRING #-1
CONFIG proxy.config.crash_log_helper STRING NULL
CONFIG proxy.config.log.logging_enabled INT 0
CONFIG proxy.config.diags.show_location INT 0
CONFIG proxy.config.exec_thread.autoconfig.enabled INT 0
CONFIG proxy.config.exec_thread.limit INT 1
CONFIG proxy.config.exec_thread.affinity INT 0
CONFIG proxy.config.accept_threads INT 0
CONFIG proxy.config.reverse_proxy.enabled INT 1
CONFIG proxy.config.url_remap.remap_required INT 1
CONFIG proxy.config.http.wait_for_cache INT 1
CONFIG proxy.config.http.cache.required_headers INT 0
CONFIG proxy.config.http.insert_age_in_response INT 0
CONFIG proxy.config.http.server_max_connections INT 0
CONFIG proxy.config.cache.ram_cache.size INT 2147483648
CONFIG proxy.config.cache.ram_cache_cutoff INT 1073741824
CONFIG proxy.config.cache.enable_read_while_writer INT 1
CONFIG proxy.config.cache.read_while_writer.max_retries INT 10
CONFIG proxy.config.http.background_fill_active_timeout INT 0
CONFIG proxy.config.http.background_fill_completed_threshold FLOAT 0.0
CONFIG proxy.config.http.cache.open_read_retry_time INT 10
CONFIG proxy.config.http.cache.max_open_read_retries INT 5
";
const ALLOW: &str = "\
ip_allow:
  - apply: in
    ip_addrs: 127.0.0.1
    action: allow
    methods: ALL
";
/// On disk, a file that is filled from its beginning.
const STORAGE_BYTES: u64 = 4 << 30;

pub(super) fn start(scene: &Scene) -> Server {
    let folder = tempfile::tempdir().unwrap();
    let address = free_address();
    lay_out(folder.path());
    let conf = |name: &str, text: &str| write(&folder.path().join("conf").join(name), text);
    let port = address.port();
    let mut records = RECORDS.to_owned();
    match &scene.certificate {
        None => records += &format!("CONFIG proxy.config.http.server_ports STRING {port}:ip-in=127.0.0.1\n"),
        Some(certificate) => {
            records += &format!("CONFIG proxy.config.http.server_ports STRING {port}:ssl:ip-in=127.0.0.1\n");
            let (cert, key) = (certificate.cert(), certificate.key());
            let line = format!("dest_ip=* ssl_cert_name={} ssl_key_name={}\n", cert.display(), key.display());
            conf("ssl_multicert.config", &line);
        }
    }
    conf("records.config", &records);
    conf("remap.config", &format!("map / {}/\n", scene.upstream.url()));
    conf("ip_allow.yaml", ALLOW);
    conf("storage.config", &format!("{} {STORAGE_BYTES}\n", folder.path().join("cache").display()));
    let mut command = Command::new("traffic_server");
    command.arg(format!("--run-root={}", folder.path().join("runroot.yaml").display()));
    run(Kind::TrafficServer, command, address, folder)
}

/// Own folders for all that it writes or is told; programs and libraries stay Debian's.
fn lay_out(folder: &Path) {
    let mut root = String::new();
    let own = [
        ("sysconfdir", "conf"),
        ("localstatedir", "run"),
        ("runtimedir", "run"),
        ("logdir", "logs"),
        ("cachedir", "cache"),
    ];
    for (name, below) in own {
        let path = folder.join(below);
        fs::create_dir_all(&path).unwrap();
        root += &format!("{name}: {}\n", path.display());
    }
    let debian = [
        ("prefix", "/usr"),
        ("exec_prefix", "/usr"),
        ("bindir", "/usr/bin"),
        ("sbindir", "/usr/sbin"),
        ("datadir", "/usr/share/trafficserver"),
        ("includedir", "/usr/include"),
        ("libdir", "/usr/lib/trafficserver"),
        ("libexecdir", "/usr/lib/trafficserver/modules"),
        ("mandir", "/usr/share/man"),
        ("infodir", "/usr/share/info"),
    ];
    for (name, path) in debian {
        root += &format!("{name}: {path}\n");
    }
    write(&folder.join("runroot.yaml"), root);
}
