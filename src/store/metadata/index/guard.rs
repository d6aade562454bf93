//! A fence around a database that may panic, and the removal of a broken one.

use std::fmt::Display;
use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Runs work that may fail or panic, and returns the reason if it does.
///
/// It is asserted to be unwind safe: the closure shares only the database, which is not asked again after a failure.
pub(in crate::store) fn catch<T, E: Display>(work: impl FnOnce() -> Result<T, E>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            Err(format!("panic: {}", text.unwrap_or("without a message")))
        }
    }
}

/// Drops a value that flushes when it is dropped, and may fail or panic then.
pub(in crate::store) fn drop_quietly<T>(it: T) {
    let _ = catch_unwind(AssertUnwindSafe(move || drop(it)));
}

/// Removes a database, or the file in its place. It is renamed first, because one that is still closing down goes on
/// writing to its files.
pub(in crate::store) fn clear_away(path: &Path) -> io::Result<()> {
    let aside = path.with_extension("broken");
    remove(&aside)?;
    match fs::rename(path, &aside) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => remove(&aside),
    }
}

fn remove(path: &Path) -> io::Result<()> {
    let result = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_and_panics_are_reasons() {
        assert_eq!(catch(|| Ok::<_, String>(1)), Ok(1));
        assert_eq!(catch(|| Err::<(), _>("broken")), Err("broken".to_owned()));
        let panicked = catch(|| -> Result<(), String> { panic!("page {}", 7) });
        assert_eq!(panicked, Err("panic: page 7".to_owned()));
    }

    #[test]
    fn folders_and_files_are_cleared_away_and_nothing_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index");
        clear_away(&path).unwrap();
        fs::create_dir_all(path.join("below")).unwrap();
        clear_away(&path).unwrap();
        fs::File::create(&path).unwrap();
        fs::create_dir_all(path.with_extension("broken")).unwrap();
        clear_away(&path).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
