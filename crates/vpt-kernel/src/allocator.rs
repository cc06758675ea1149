//! glibc's allocator, told to give large blocks back to the system.

/// Has blocks of 128 KiB and more mapped apart from now on, so that they go back to the system as soon as they are freed; whether
/// that could be set.
///
/// glibc begins so, too, but raises the size to that of the largest block that was freed, up to 32 MiB, and what is smaller then
/// stays with the process: a server that was sent some large images once keeps their memory for good. Allocators of other
/// systems have no such setting, and nothing is done. It is the whole process's setting, so it is for programs, not for libraries.
pub fn return_large_blocks() -> bool {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        use std::ffi::c_int;

        /// Of glibc's `malloc.h`.
        const M_MMAP_THRESHOLD: c_int = -3;

        // As glibc's `malloc.h` declares it.
        unsafe extern "C" {
            fn mallopt(parameter: c_int, value: c_int) -> c_int;
        }
        // SAFETY: two numbers; the call changes a setting of the allocator under the allocator's own lock, and nothing else.
        unsafe { mallopt(M_MMAP_THRESHOLD, 128 << 10) == 1 }
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    false
}

#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod tests {
    #[test]
    #[cfg_attr(miri, ignore = "Miri has an allocator of its own")]
    fn a_freed_block_is_given_back() {
        let resident = || -> usize {
            let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
            pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() << 12
        };
        assert!(super::return_large_blocks());
        // A large one raises the size where it is not set for good; the later ones are below it.
        drop(vec![1_u8; 30 << 20]);
        let before = resident();
        let mut blocks: Vec<Vec<u8>> = (0..64).map(|_| vec![1; 1 << 20]).collect();
        assert!(resident() > before + (48 << 20));
        // What lies above them would keep them with the process.
        let last = blocks.pop();
        drop(blocks);
        assert!(resident() < before + (16 << 20), "{} MiB stay", (resident() - before) >> 20);
        drop(last);
    }
}
