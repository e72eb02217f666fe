//! The host's clock as files are dated by it.
#![allow(unsafe_code)]

/// Nanoseconds since 1970, on the clock that was asked.
pub type Nanoseconds = i64;

/// The time of the clock's last tick, some milliseconds ago at most, which takes
/// a seventh of the time that the exact one takes (`CLOCK_REALTIME_COARSE`,
/// `clock_gettime(2)`).
pub fn last_tick() -> Nanoseconds {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel or the C library writes one `timespec`. Linux has this
    // clock since 2.6.32; without it the time stays 0, before everything.
    unsafe { libc::clock_gettime(libc::CLOCK_REALTIME_COARSE, &raw mut now) };
    now.tv_sec
        .saturating_mul(1_000_000_000)
        .saturating_add(now.tv_nsec)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    #[test]
    fn it_is_not_later_than_now_and_not_much_earlier() {
        let ticked = last_tick();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = Nanoseconds::try_from(now.unwrap().as_nanos()).unwrap();
        assert!(ticked <= now);
        assert!(now - ticked < Duration::from_secs(10).as_nanos() as Nanoseconds);
    }
}
