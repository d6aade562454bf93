//! skopeo, told the mirror's own address.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::super::process::try_run;
use super::super::real_images::{By, Image};
use super::{Haul, Mirror, isolated};

/// Copies the images into folders; with `all`, every manifest that an index names.
pub(super) async fn pull(
    state: &Path,
    mirror: &Mirror,
    images: &[&Image],
    by: By,
    all: bool,
) -> Result<Haul, String> {
    let folder = state.join("copies");
    let mut required = BTreeSet::new();
    for (number, image) in images.iter().enumerate() {
        let mut command = isolated("skopeo", &["/var/lib/containers", "/run/containers"]);
        command.env("HOME", state).env("TMPDIR", state).args(["--insecure-policy", "copy", "--quiet"]);
        match mirror.ca_folder(state) {
            Some(folder) => command.arg(format!("--src-cert-dir={}", folder.display())),
            None => command.arg("--src-tls-verify=false"),
        };
        if all {
            command.args(["--all", "--preserve-digests"]);
            required.extend(image.everything());
        } else {
            // An image that is no container image has no platform to choose.
            required.extend(image.native().map_or_else(|| image.everything(), |native| native.packed()));
        }
        let copy = folder.join(number.to_string());
        fs::create_dir_all(&copy).expect("the state is writable");
        command.arg(format!("docker://{}/{}", mirror.location(&image.registry), image.path(by)));
        try_run(command.arg(format!("dir:{}", copy.display()))).await?;
        fs::remove_file(copy.join("version")).expect("skopeo writes the version of its layout");
    }
    let digests = vec![None; images.len()]; // the manifests are required
    Ok(Haul { folder, required, exact: true, digests })
}
