//! Returns freed memory to the system.
//!
//! A pass over a large store allocates and frees millions of records between others that stay, on a thread that does
//! nothing else afterwards. glibc keeps such memory for that thread: at a million blobs 80 MiB that nobody used
//! stayed resident, a quarter of all (`benches/run scale`). Other allocators were tried: mimalloc holds five times as
//! much of a small store, and jemalloc takes longer to build than all the rest.

/// Size of an allocation, in bytes, from which on its memory goes back to the system when it is freed. Serving a blob
/// allocates less at once; reading the largest manifests and lists allocates more, on any thread.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const APART_BYTES: libc::c_int = 2 << 20;
/// Bytes of free memory that are kept at the end of an arena.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const KEPT_BYTES: libc::c_int = 2 << 20;

/// Makes glibc return large allocations to the system as soon as they are freed.
///
/// By default glibc keeps such blocks for the thread that had them once the first one is freed, and there are many
/// threads: 24 documents of 4 MiB left a hundred megabytes behind that nobody used.
pub fn keep_large_apart() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it sets numbers of the allocator's, under its own lock.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, APART_BYTES);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_BYTES);
    }
}

/// Returns all free memory to the system. It takes some milliseconds for each 100 MiB, so it is called at the end of
/// long work.
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
