//! Memory that was freed, given back to the system.
//!
//! A pass over a large store allocates and frees millions of records between others that stay, on a thread that
//! does nothing else afterwards. glibc keeps such memory for that thread: at a million blobs 80 MiB that nobody
//! used stayed resident, a quarter of all (`benches/run scale`). Other allocators were tried: mimalloc holds five
//! times as much of a small store, and jemalloc takes longer to build than all the rest.

/// From this size on, memory is the system's own, and goes back to it when it is freed. No more is asked for at once on the
/// way of a blob, but the largest manifests and lists are, by whatever thread reads one.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const APART_BYTES: libc::c_int = 2 << 20;
/// Free memory at the end of an arena that is kept for the next.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const KEPT_BYTES: libc::c_int = 2 << 20;

/// Has what is large given back as soon as it is freed..
///
/// glibc learns from the first large block that is freed to keep all such blocks for the thread that had it, of which
/// there are many: 24 documents of 4 MiB left a hundred megabytes behind that nobody used.
pub fn keep_large_apart() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it sets numbers of the allocator's, under its own lock.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, APART_BYTES);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_BYTES);
    }
}

/// Gives back what is free. It takes some milliseconds for each 100 MiB, so it is for the end of long work.
pub(in crate::store) fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it touches only memory that the allocator knows to be free, under the allocator's own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
#[cfg(target_env = "gnu")]
mod tests {
    use super::*;

    fn resident_kib() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
    }

    #[test]
    fn what_is_free_between_things_that_stay_is_given_back() {
        const BLOCK: usize = 8192;
        let mut blocks: Vec<Vec<u8>> = (0..256 << 20 >> 13).map(|_| vec![1; BLOCK]).collect();
        let mut number = 0;
        blocks.retain(|_| {
            number += 1;
            number % 16 == 0
        });
        let before = resident_kib();
        trim();
        let after = resident_kib();
        assert!(after + (64 << 10) < before, "{before} KiB resident before, {after} after");
        drop(blocks);
    }
}
