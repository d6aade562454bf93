//! The permissions of the data folder: besides berth nobody may read it, or one group.
//!
//! There are private images in it. The data folder itself decides ([`Mode`]): nothing below it is ever for other
//! users, and all content is for the group as well, so that the mode of one folder lets a group in or shuts it out. A
//! data folder that was made before, or by hand, is closed at start, whatever its mode was, and so is what lies at
//! its top. What lies deeper need not be touched, because other users cannot get there.

use std::fs::{self, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use serde::{Deserialize, Deserializer, de};

/// The permissions of a new folder below the data folder.
const FOLDER_MODE: u32 = 0o750;
/// Names of berth's own files and folders in a data folder.
const OWN_NAMES: [&str; 9] =
    ["blobs", "blobs/sha256", "blobs/sha512", "repos", "partial", "index", "quarantine", "lock", "pins.json"];
/// Other names that may be in a data folder of berth's alone: a secret, whose mode is set where it is written, and
/// the folder that a file system makes at its top.
const OTHER_NAMES: [&str; 2] = ["admin-token", "lost+found"];
/// The permission bits, without those that say how new files are made.
const PERMISSIONS: u32 = 0o777;

/// `data_mode`: the users that may read the data folder besides berth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// `"0700"`: nobody.
    #[default]
    Own,
    /// `"0750"`: the folder's group, such as one that makes backups.
    Group,
}

impl Mode {
    fn bits(self) -> u32 {
        match self {
            Self::Own => 0o700,
            Self::Group => 0o750,
        }
    }

    /// Returns the mode that a data folder must be given, if it has another one. It never gives other users more than
    /// `self` allows, and it gives the group what it needs if that is let in. The setgid bit stays.
    fn wanted(self, found: u32) -> Option<u32> {
        let wanted = (found & (!PERMISSIONS | self.bits())) | (self.bits() & 0o070);
        (wanted != found).then_some(wanted)
    }
}

impl<'de> Deserialize<'de> for Mode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match &*String::deserialize(deserializer)? {
            "0700" => Ok(Self::Own),
            "0750" => Ok(Self::Group),
            other => Err(de::Error::custom(format!(
                "`{other}`: expected \"0700\", for berth alone, or \"0750\", for the folder's group, too"
            ))),
        }
    }
}

/// Makes the data folder if it is not there, and closes it to other users. If that fails, it is logged and does not
/// prevent the start: the disk may be read-only, and the folder may belong to an administrator.
pub fn close_to_others(folder: &Path, mode: Mode) {
    if !folder.exists() {
        // With all that is missing above it, which stays berth's own. Whether it worked is seen when it is opened.
        let _ = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    }
    if let Err(error) = close(folder, mode) {
        tracing::debug!(folder = %folder.display(), %error, "the data folder stays as open as it is");
    }
    for name in OWN_NAMES {
        if let Err(error) = close_below(&folder.join(name)) {
            tracing::warn!(folder = %folder.display(), name, %error, "other users of this machine may be able to read this: `chmod` it");
        }
    }
}

fn close(folder: &Path, mode: Mode) -> io::Result<()> {
    let found = fs::metadata(folder)?;
    let Some(wanted) = mode.wanted(bits(&found)) else { return Ok(()) };
    if is_shared(folder, &found) {
        tracing::warn!(folder = %folder.display(), "the data folder holds other things than berth's, and stays as open as it is; what is berth's in it is closed");
        return Ok(());
    }
    fs::set_permissions(folder, Permissions::from_mode(wanted))
}

/// Takes all permissions of other users on something of berth's in the data folder.
fn close_below(path: &Path) -> io::Result<()> {
    let Ok(found) = fs::symlink_metadata(path) else { return Ok(()) };
    let closed = bits(&found) & !0o007;
    if found.is_symlink() || closed == bits(&found) {
        return Ok(());
    }
    fs::set_permissions(path, Permissions::from_mode(closed))
}

/// Whether a folder is shared with other programs, such as `/tmp`. Its mode is then theirs to decide.
fn is_shared(folder: &Path, metadata: &Metadata) -> bool {
    const STICKY: u32 = 0o1000;
    // A broken index lies beside it for a while, and so does what was in the place of the quarantine.
    let is_aside = |name: &str| name.starts_with("index.") || name.starts_with("quarantine.");
    let is_own = |name: &str| OWN_NAMES.contains(&name) || OTHER_NAMES.contains(&name) || is_aside(name);
    let is_foreign = |name: &str| !is_own(name) && !name.starts_with('.');
    let mut names = fs::read_dir(folder).into_iter().flatten().flatten();
    bits(metadata) & STICKY != 0
        || folder.parent().is_none()
        || names.any(|entry| entry.file_name().to_str().is_none_or(is_foreign))
}

/// Sets the permissions of a new folder below the data folder, and keeps the bits that it has inherited.
pub(in crate::store) fn open_to_group(folder: &Path) -> io::Result<()> {
    let inherited = bits(&fs::metadata(folder)?) & !PERMISSIONS;
    fs::set_permissions(folder, Permissions::from_mode(inherited | FOLDER_MODE))
}

fn bits(metadata: &Metadata) -> u32 {
    metadata.mode() & 0o7777
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_closed_and_never_opened_further_than_was_asked() {
        for (mode, found, wanted) in [
            (Mode::Own, 0o755, 0o700),
            (Mode::Own, 0o777, 0o700),
            (Mode::Own, 0o700, 0o700),
            (Mode::Own, 0o500, 0o500),
            (Mode::Own, 0o2775, 0o2700),
            (Mode::Group, 0o700, 0o750),
            (Mode::Group, 0o755, 0o750),
            (Mode::Group, 0o770, 0o750),
            (Mode::Group, 0o2750, 0o2750),
            (Mode::Group, 0o500, 0o550),
        ] {
            let expected = (wanted != found).then_some(wanted);
            assert_eq!(mode.wanted(found), expected, "{mode:?} {found:o}");
        }
        for (text, mode) in
            [("0700", Some(Mode::Own)), ("0750", Some(Mode::Group)), ("0755", None), ("", None)]
        {
            let read = toml::from_str::<std::collections::HashMap<String, Mode>>(&format!("mode = {text:?}"));
            assert_eq!(read.ok().map(|read| read["mode"]), mode, "{text}");
        }
    }

    #[test]
    fn what_others_made_in_it_keeps_a_folder_as_it_is_and_what_is_berths_is_closed() {
        let at = tempfile::tempdir().unwrap();
        let mode = |path: &Path| bits(&fs::metadata(path).unwrap());
        for (name, left) in [("lost+found", 0o700), ("index.broken", 0o700), ("somebody's", 0o755)] {
            let root = at.path().join(name);
            for folder in [name, "blobs", "repos", "partial"] {
                fs::create_dir_all(root.join(folder)).unwrap();
                fs::set_permissions(root.join(folder), Permissions::from_mode(0o755)).unwrap();
            }
            fs::set_permissions(&root, Permissions::from_mode(0o755)).unwrap();
            close_to_others(&root, Mode::Own);
            assert_eq!(mode(&root), left, "{name}");
            assert_eq!(mode(&root.join("blobs")), 0o750, "{name}");
            assert_eq!(mode(&root.join(name)), 0o755, "{name}");
        }
        let new = at.path().join("new/data");
        close_to_others(&new, Mode::Group);
        assert_eq!((mode(&new), mode(&at.path().join("new"))), (0o750, 0o700));
    }
}
