//! The clocks of the host, and of its threads.
#![allow(unsafe_code)]

/// Nanoseconds since 1970, on the clock that was asked.
pub type Nanoseconds = i64;

/// The time of the clock's last tick, some milliseconds ago at most, which takes
/// a seventh of the time that the exact one takes (`CLOCK_REALTIME_COARSE`,
/// `clock_gettime(2)`).
pub fn last_tick() -> Nanoseconds {
    // Linux has it since 2.6.32; without it the time is 0, before everything.
    nanoseconds_of(libc::CLOCK_REALTIME_COARSE)
}

/// How long the calling thread has run on a processor.
#[cfg(test)]
pub fn thread_cpu_time() -> std::time::Duration {
    let time = nanoseconds_of(libc::CLOCK_THREAD_CPUTIME_ID);
    assert_ne!(time, 0);
    std::time::Duration::from_nanos(time.cast_unsigned())
}

/// What a clock shows; 0 where there is none.
fn nanoseconds_of(clock: libc::clockid_t) -> Nanoseconds {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the call fills the structure that it is given, which outlives it.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    time.tv_sec
        .saturating_mul(1_000_000_000)
        .saturating_add(time.tv_nsec)
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
