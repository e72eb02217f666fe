//! What the C library's allocator may do once the daemon is locked in.
#![allow(unsafe_code)]

/// Keeps the allocator from opening files.
///
/// To choose the number of its arenas it would count the processors in
/// `/sys/devices/system/cpu/online`, and before it gives memory back it would
/// look into `/proc/sys/vm/overcommit_memory`. In the sandbox these paths lead
/// into the share, where a guest may have put a fifo, on which the daemon would
/// wait for ever. So the number is set, and the top of an arena is kept.
pub fn keep_from_files() {
    #[cfg(target_env = "gnu")]
    {
        /// As many as the allocator takes for each processor by itself.
        const PER_PROCESSOR: usize = 8;
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let arenas = i32::try_from(processors.saturating_mul(PER_PROCESSOR)).unwrap_or(i32::MAX);
        // SAFETY: two numbers that the allocator notes; it answers 0 where it
        // does not take them, and then goes on as before.
        unsafe { libc::mallopt(libc::M_ARENA_MAX, arenas) };
        // SAFETY: as above.
        unsafe { libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX) };
    }
}
