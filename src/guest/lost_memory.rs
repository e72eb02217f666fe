//! Memory of others that goes away: a page that is behind the end of its file, or
//! that the host cannot give (huge pages that are used up, a full tmpfs).
//!
//! Touching it is a SIGBUS, which would end the daemon, and with `--keep-listening`
//! take the share from the front ends to come. Here the page is replaced by an empty
//! one, and it is noted that the memory cannot be relied on: no request is served
//! from then on until the front end sends other memory. Where the kernel copies, as
//! for the data of READ and WRITE, the fault is `EFAULT` and nothing of this happens.
//!
//! The same is done for a mapping that was revoked (`renewal`); but that memory is to be
//! had elsewhere, and nothing is lost.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// The size of a page where the memory does not come in huge ones.
pub(super) const PAGE: usize = 4096;

/// The most ranges that are watched: for each region of the largest map its memory
/// and its part of the dirty log, twice, as a map that was replaced is still in use.
const MOST: usize = 4 * super::MAX_REGIONS;

/// One range; the handler reads it without a lock.
struct Range {
    /// 0 for a free one, 1 for one that is being written.
    start: AtomicUsize,
    len: AtomicUsize,
    /// The size of its pages.
    page: AtomicUsize,
    is_lost: AtomicBool,
    is_revoked: AtomicBool,
}

static RANGES: [Range; MOST] = [const {
    Range {
        start: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
        page: AtomicUsize::new(PAGE),
        is_lost: AtomicBool::new(false),
        is_revoked: AtomicBool::new(false),
    }
}; MOST];

/// Whether memory that is in use was lost.
static LOST: AtomicBool = AtomicBool::new(false);

/// Pages that were replaced by empty ones.
static REPLACED: AtomicUsize = AtomicUsize::new(0);

/// The handlers that were there before, of SIGBUS and SIGSEGV; Rust's own find
/// overflows of stacks.
static BEFORE: OnceLock<[SigAction; 2]> = OnceLock::new();

/// A range of memory that is watched for as long as this lives.
#[derive(Debug)]
pub(super) struct Watched(Option<&'static Range>);

impl std::fmt::Debug for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#x}", self.start.load(Ordering::Relaxed))
    }
}

impl Watched {
    /// Watches mapped memory, which lies in pages of so many bytes.
    pub(super) fn new(start: *const u8, len: usize, page: usize) -> Self {
        let free = RANGES.iter().find(|range| {
            let claimed = range
                .start
                .compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed);
            claimed.is_ok()
        });
        if let Some(range) = free {
            range.len.store(len, Ordering::Relaxed);
            range.page.store(page.max(PAGE), Ordering::Relaxed);
            range.is_lost.store(false, Ordering::Relaxed);
            range.is_revoked.store(false, Ordering::Relaxed);
            range.start.store(start as usize, Ordering::Release);
        }
        Self(free)
    }

    /// The memory is about to be taken away, and to be had elsewhere; `false` where
    /// nobody would know.
    pub(super) fn revoke(&self) -> bool {
        self.0
            .inspect(|range| range.is_revoked.store(true, Ordering::SeqCst))
            .is_some()
    }

    /// Whether a page of it was lost.
    pub(super) fn is_lost(&self) -> bool {
        self.0
            .is_some_and(|range| range.is_lost.load(Ordering::Relaxed))
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(range) = self.0 {
            range.start.store(0, Ordering::Release);
        }
    }
}

/// Whether memory that is in use was lost: what is read from it may be anything.
pub fn memory_is_lost() -> bool {
    LOST.load(Ordering::Relaxed)
}

/// How many pages were replaced by empty ones: what was read while that changed may be
/// of one.
pub fn replaced_pages() -> usize {
    REPLACED.load(Ordering::Relaxed)
}

/// Says whether a page of the memory that is now in use was lost.
pub(super) fn set_lost(is_lost: bool) {
    LOST.store(is_lost, Ordering::Relaxed);
}

/// Has a page be given for an address whose memory can be had no more.
///
/// Call it once.
///
/// # Errors
/// Those of `sigaction(2)`.
pub fn survive_lost_memory() -> std::io::Result<()> {
    let action = SigAction::new(
        SigHandler::SigAction(replace),
        SaFlags::SA_SIGINFO | SaFlags::SA_ONSTACK,
        SigSet::empty(),
    );
    // SAFETY: `replace` calls only what may be called in a handler.
    let bus = unsafe { sigaction(Signal::SIGBUS, &action) }?;
    // SAFETY: as above.
    let segv = unsafe { sigaction(Signal::SIGSEGV, &action) }?;
    BEFORE.get_or_init(|| [bus, segv]);
    Ok(())
}

/// Puts an empty page in the place of one that is gone. What the daemon has not
/// mapped for a front end is left to the handler before, which meets the fault
/// again.
extern "C" fn replace(signal: i32, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the kernel passes what belongs to the signal.
    let info = unsafe { &*info };
    // SAFETY: both signals come with an address.
    let address = unsafe { info.si_addr() } as usize;
    for range in &RANGES {
        let start = range.start.load(Ordering::Acquire);
        let offset = address.wrapping_sub(start);
        if start > 1 && offset < range.len.load(Ordering::Relaxed) {
            // Before the page can be read.
            if !range.is_revoked.load(Ordering::SeqCst) {
                range.is_lost.store(true, Ordering::SeqCst);
                LOST.store(true, Ordering::SeqCst);
            }
            REPLACED.fetch_add(1, Ordering::SeqCst);
            let page = range.page.load(Ordering::Relaxed);
            if put_empty_page(address, PAGE) || put_empty_page(address, page) {
                return;
            }
        }
    }
    let (signal, place) = match signal {
        libc::SIGSEGV => (Signal::SIGSEGV, 1),
        _ => (Signal::SIGBUS, 0),
    };
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    let before = BEFORE.get().and_then(|before| before.get(place));
    // SAFETY: an action that was in force, or the one for those who have none.
    let _ = unsafe { sigaction(signal, before.unwrap_or(&default)) };
}

fn put_empty_page(address: usize, size: usize) -> bool {
    let start = (address & !(size - 1)) as *mut libc::c_void;
    // SAFETY: the page is one of a range that the daemon has mapped for a front end,
    // whose content is anything at any time.
    let page = unsafe {
        libc::mmap(
            start,
            size,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    page == start
}

/// Whether a byte of shared memory can be had at all, where the kernel can say so
/// (Linux 5.14 and newer).
pub(super) fn is_there(byte: *const AtomicU8) -> bool {
    let page = (byte as usize & !(PAGE - 1)) as *mut libc::c_void;
    // SAFETY: the page of a byte that is mapped; the advice changes nothing in it.
    let result = unsafe { libc::madvise(page, PAGE, libc::MADV_POPULATE_READ) };
    result == 0 || std::io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL)
}
