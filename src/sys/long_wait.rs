//! Announcing that the calling thread is about to block, so that its work can be given
//! to another thread.

use std::cell::RefCell;

/// What is called before a thread waits.
type Hook = Box<dyn Fn()>;

thread_local! {
    static HOOK: RefCell<Option<Hook>> = const { RefCell::new(None) };
}

/// Has `hook` called each time when this thread is about to wait; the first one that is
/// set stays.
pub fn set_hook(hook: impl FnOnce() -> Hook) {
    HOOK.with_borrow_mut(|place| {
        place.get_or_insert_with(hook);
    });
}

/// The calling thread is about to wait for some milliseconds or more.
pub fn is_near() {
    HOOK.with_borrow(|hook| {
        if let Some(hook) = hook {
            hook();
        }
    });
}
