//! The one way to read files that people write: certificates, keys, logins, passwords, tokens, profiles.
//!
//! Some editors mark a file with a BOM or end lines as Windows does, and anything may be in the place of a file by the time
//! that it is read. So what is read is a regular file of bounded size, without its BOM, and text has plain line ends. The
//! error of a file that cannot be read says what is there instead.

use std::fs::{File, FileType, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::OFlags;

/// The size in bytes of the longest file that is read: a bundle of all the world's authorities is a tenth of it.
pub const FILE_BYTES_MAX: u64 = 4 << 20;

/// The bytes that UTF-8 begins with in files of some editors.
pub const BOM: &[u8] = b"\xef\xbb\xbf";
/// The bytes that UTF-16 begins with: little-endian, as PowerShell writes it, or big-endian.
const UTF_16: [&[u8]; 2] = [b"\xff\xfe", b"\xfe\xff"];

/// Reads a file. Something else may have taken its place.
///
/// # Errors
/// When it cannot be read, is something else than a file, such as a pipe that nothing writes to, has more than 4 MiB, or is
/// in UTF-16.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    content(open(path, OFlags::empty())?)
}

/// The same for text in UTF-8; every line ends with `\n`.
///
/// # Errors
/// As for [`read`], and when it is not UTF-8.
pub fn read_text(path: &Path) -> io::Result<String> {
    text(read(path)?)
}

/// Opens a file without waiting, as for the writer of a pipe.
///
/// # Errors
/// When it cannot be opened, or is something else than a file.
pub fn open(path: &Path, flags: OFlags) -> io::Result<File> {
    let flags = (OFlags::NONBLOCK | flags).bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    match other_kind(file.metadata()?.file_type()) {
        None => Ok(file),
        Some(kind) => {
            Err(io::Error::new(io::ErrorKind::InvalidInput, format!("expected a regular file: it is {kind}")))
        }
    }
}

/// Reads the content of an open file, without a BOM.
///
/// # Errors
/// When it cannot be read, has more than 4 MiB, or is in UTF-16.
pub fn content(file: impl io::Read) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut content)?;
    if content.len() as u64 > FILE_BYTES_MAX {
        return Err(invalid("expected at most 4 MiB"));
    }
    if UTF_16.iter().any(|mark| content.starts_with(mark)) {
        return Err(invalid("expected text in UTF-8: it is in UTF-16, and is to be saved anew"));
    }
    if content.starts_with(BOM) {
        content.drain(..BOM.len());
    }
    Ok(content)
}

/// Reads content as text. Every line ends with `\n`.
///
/// # Errors
/// When it is not UTF-8.
pub fn text(content: Vec<u8>) -> io::Result<String> {
    let text = String::from_utf8(content).map_err(|_| invalid("expected text in UTF-8"))?;
    Ok(if text.contains('\r') { text.replace("\r\n", "\n") } else { text })
}

fn invalid(expected: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, expected)
}

/// The kind of something that is no file.
fn other_kind(found: FileType) -> Option<&'static str> {
    match found {
        it if it.is_file() => None,
        it if it.is_dir() => Some("a folder"),
        it if it.is_fifo() => Some("a pipe"),
        it if it.is_socket() => Some("a socket"),
        _ => Some("a device"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_is_no_file_or_endless_is_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let check = |path: &Path, expected: &str| {
            let error = read(path).unwrap_err().to_string();
            assert!(error.contains(expected), "{}: {error}", path.display());
        };
        let mode = rustix::fs::Mode::RUSR;
        rustix::fs::mknodat(rustix::fs::CWD, at("pipe"), rustix::fs::FileType::Fifo, mode, 0).unwrap();
        check(&at("pipe"), "a regular file: it is a pipe");
        check(&at(""), "a regular file: it is a folder");
        check(Path::new("/dev/null"), "a regular file: it is a device");
        check(&at("none"), "No such file");
        File::create(at("large")).unwrap().set_len(FILE_BYTES_MAX + 1).unwrap();
        check(&at("large"), "4 MiB");
        File::create(at("full")).unwrap().set_len(FILE_BYTES_MAX).unwrap();
        assert_eq!(read(&at("full")).unwrap().len() as u64, FILE_BYTES_MAX);
        symlink("full", at("link")).unwrap();
        assert!(read_text(&at("link")).is_ok());
        fs::remove_file(at("full")).unwrap();
        check(&at("link"), "No such file");
    }

    #[test]
    fn marks_and_line_ends_of_editors_are_no_text() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let check = |content: &[u8], expected: Result<&str, &str>| {
            File::create(&path).unwrap().write_all(content).unwrap();
            match (read_text(&path), expected) {
                (Ok(text), Ok(expected)) => assert_eq!(text, expected),
                (Err(error), Err(expected)) => assert!(error.to_string().contains(expected), "{error}"),
                (found, expected) => panic!("{found:?} rather than {expected:?}"),
            }
        };
        check(b"\xef\xbb\xbfa\r\nb\r\n", Ok("a\nb\n"));
        check(b"a\nb", Ok("a\nb"));
        check(b"a\rb", Ok("a\rb"));
        check(b"\xef\xbb\xbf", Ok(""));
        check(b"a\xef\xbb\xbf", Ok("a\u{feff}"));
        check(b"\xff\xfea\0", Err("UTF-16"));
        check(b"\xfe\xff\0a", Err("UTF-16"));
        check(b"caf\xe9", Err("UTF-8"));
    }
}
