//! A tar archive that every runtime unpacks: POSIX ustar, with folders, files and symbolic links.

/// The unit of a tar: headers are one block, contents are padded to whole blocks.
const BLOCK: usize = 512;

/// What stands in the type field of a header.
#[derive(Clone, Copy)]
enum Kind {
    File = b'0' as isize,
    SymbolicLink = b'2' as isize,
    Folder = b'5' as isize,
}

/// An archive being written.
#[derive(Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
}

impl Archive {
    pub(super) fn folder(&mut self, path: &str) {
        self.header(path, Kind::Folder, 0, "");
    }

    pub(super) fn file(&mut self, path: &str, content: &[u8]) {
        self.header(path, Kind::File, content.len(), "");
        self.bytes.extend_from_slice(content);
        let padded = self.bytes.len().next_multiple_of(BLOCK);
        self.bytes.resize(padded, 0);
    }

    pub(super) fn link(&mut self, path: &str, target: &str) {
        self.header(path, Kind::SymbolicLink, 0, target);
    }

    /// The whole archive: two empty blocks mark its end.
    pub(super) fn finish(mut self) -> Vec<u8> {
        let end = self.bytes.len() + 2 * BLOCK;
        self.bytes.resize(end, 0);
        self.bytes
    }

    fn header(&mut self, path: &str, kind: Kind, size: usize, target: &str) {
        let mode = if matches!(kind, Kind::Folder) { 0o755 } else { 0o644 };
        let mut block = [0; BLOCK];
        let mut field = |at: usize, value: &[u8]| block[at..at + value.len()].copy_from_slice(value);
        field(0, path.as_bytes());
        field(100, format!("{mode:07o}\0").as_bytes());
        field(108, b"0000000\0"); // owner
        field(116, b"0000000\0"); // group
        field(124, format!("{size:011o}\0").as_bytes());
        field(136, b"00000000000\0"); // time
        field(148, b"        "); // the checksum counts itself as spaces
        field(156, &[kind as u8]);
        field(157, target.as_bytes());
        field(257, b"ustar\x0000");
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.bytes.extend_from_slice(&block);
    }
}
