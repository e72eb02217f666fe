//! Acting as the guest's user for one call.
//!
//! The identity of a thread is changed by a guard that undoes exactly what was
//! done. If undoing fails, the process stops: serving the next request as the
//! wrong user is worse.

use rustix::io::Errno;
use rustix::process::{Gid, Uid, getegid, geteuid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};

use crate::passthrough::users::id_map::HostIds;

/// A group that nobody is a member of.
const NO_ONES: u32 = 65534;

/// Who the daemon is when it acts for itself; the same for all its threads.
#[derive(Debug)]
pub struct Credentials {
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
    capabilities: CapabilitySets,
}

impl Credentials {
    /// The identity of the calling thread, which all others share.
    ///
    /// # Errors
    /// Those of `capget(2)` and `getgroups(2)`.
    pub fn current() -> Result<Self, Errno> {
        Ok(Self {
            uid: geteuid(),
            gid: getegid(),
            groups: rustix::process::getgroups()?,
            capabilities: capabilities(None)?,
        })
    }

    /// Makes the calling thread act as a user of the guest, who is `who` on this
    /// host, until the guard drops.
    ///
    /// A supplementary group that the guest names is taken on as the only one.
    ///
    /// # Errors
    /// Those of the calls that change the identity, `EPERM` for an id that the
    /// daemon's user namespace does not have; then nothing is changed.
    pub fn assume(&self, who: HostIds, group: Option<Gid>) -> Result<AsGuest<'_>, Errno> {
        let mut guard = AsGuest {
            own: self,
            groups: false,
            gid: false,
            uid: false,
        };
        let HostIds { uid, gid } = who;
        if uid == self.uid && gid == self.gid {
            return Ok(guard);
        }
        // The groups are changed first: once the uid is not root we may no
        // longer do it.
        if let Some(group) = group {
            set_thread_groups(&[group]).map_err(not_mapped)?;
            guard.groups = true;
        }
        if gid != self.gid {
            set_thread_res_gid(None, gid, None).map_err(not_mapped)?;
            guard.gid = true;
        }
        if uid != self.uid {
            set_thread_res_uid(None, uid, None).map_err(not_mapped)?;
            guard.uid = true;
            let own = self.capabilities.effective;
            // The guest's kernel has checked already what its process may do, and
            // knows of capabilities, groups and namespaces that a request does not
            // name.
            let wanted = own & CapabilitySet::DAC_OVERRIDE;
            // Root has lost all with its uid, others lose none by themselves.
            let left = if self.uid.is_root() {
                CapabilitySet::empty()
            } else {
                own
            };
            if left != wanted {
                let effective = wanted;
                set_capabilities(
                    None,
                    CapabilitySets {
                        effective,
                        ..self.capabilities
                    },
                )?;
            }
        }
        Ok(guard)
    }

    /// Whether set-id bits stay when the daemon itself writes.
    pub fn may_keep_set_id(&self) -> bool {
        self.capabilities.effective.contains(CapabilitySet::FSETID)
    }

    /// Makes sure that the calling thread is not in a group; see
    /// [`Self::inside_of`].
    ///
    /// # Errors
    /// Those of the calls that change the identity; then nothing is changed.
    pub fn outside_of(&self, gid: Gid) -> Result<Option<AsGuest<'_>>, Errno> {
        match (gid == self.gid, gid.as_raw()) {
            (false, _) => Ok(None),
            (true, NO_ONES) => self.inside_of(Gid::ROOT),
            (true, _) => self.inside_of(Gid::from_raw(NO_ONES)),
        }
    }

    /// Makes the calling thread a member of a group in place of the daemon's own:
    /// `None` if it is that already, or if its user namespace does not have the
    /// group, which then means nothing.
    ///
    /// # Errors
    /// Those of the calls that change the identity; then nothing is changed.
    pub fn inside_of(&self, gid: Gid) -> Result<Option<AsGuest<'_>>, Errno> {
        if gid == self.gid {
            return Ok(None);
        }
        let uid = self.uid;
        match self.assume(HostIds { uid, gid }, None) {
            Err(Errno::INVAL) => Ok(None),
            inside => inside.map(Some),
        }
    }

    /// Makes the calling thread one whose writes drop set-id bits.
    ///
    /// # Errors
    /// Those of `capset(2)`; then nothing is changed.
    pub fn without_fsetid(&self) -> Result<WithoutFsetid<'_>, Errno> {
        let dropped = self.may_keep_set_id();
        if dropped {
            let effective = self.capabilities.effective - CapabilitySet::FSETID;
            set_capabilities(
                None,
                CapabilitySets {
                    effective,
                    ..self.capabilities
                },
            )?;
        }
        Ok(WithoutFsetid { own: self, dropped })
    }
}

/// The thread may not keep set-id bits for as long as this lives.
#[derive(Debug)]
#[must_use]
pub struct WithoutFsetid<'a> {
    own: &'a Credentials,
    dropped: bool,
}

impl Drop for WithoutFsetid<'_> {
    fn drop(&mut self) {
        if self.dropped {
            or_abort(set_capabilities(None, self.own.capabilities));
        }
    }
}

/// The thread acts as the guest's user for as long as this lives.
#[derive(Debug)]
#[must_use]
pub struct AsGuest<'a> {
    own: &'a Credentials,
    groups: bool,
    gid: bool,
    uid: bool,
}

impl Drop for AsGuest<'_> {
    fn drop(&mut self) {
        // The uid comes first: it brings back the right to change the rest.
        or_abort((|| {
            if self.uid {
                set_thread_res_uid(None, self.own.uid, None)?;
                // Becoming root again gives all that is permitted.
                let sets = self.own.capabilities;
                let came_back = self.own.uid.is_root() && sets.effective == sets.permitted;
                if !came_back && !sets.permitted.is_empty() {
                    set_capabilities(None, sets)?;
                }
            }
            if self.gid {
                set_thread_res_gid(None, self.own.gid, None)?;
            }
            if self.groups {
                set_thread_groups(&self.own.groups)?;
            }
            Ok(())
        })());
    }
}

/// An id that this user namespace does not have is as one that may not be used.
fn not_mapped(errno: Errno) -> Errno {
    if errno == Errno::INVAL {
        Errno::PERM
    } else {
        errno
    }
}

/// Serving on with a half-changed identity would be worse than not serving.
fn or_abort(undone: Result<(), Errno>) {
    if let Err(errno) = undone {
        log::error!("cannot become the daemon's own user again, stopping: {errno}");
        std::process::abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(uid: u32, gid: u32) -> HostIds {
        HostIds {
            uid: Uid::from_raw(uid),
            gid: Gid::from_raw(gid),
        }
    }

    /// Everything of the calling thread's identity that `assume` may touch.
    fn identity() -> (u32, u32, Vec<u32>, CapabilitySet) {
        let groups = rustix::process::getgroups().unwrap();
        (
            geteuid().as_raw(),
            getegid().as_raw(),
            groups.iter().map(|group| group.as_raw()).collect(),
            capabilities(None).unwrap().effective,
        )
    }

    #[test]
    fn the_guests_user_is_assumed_and_given_up_again() {
        let own = Credentials::current().unwrap();
        let before = identity();
        if !geteuid().is_root() {
            let refused = own.assume(ids(4242, 4343), None);
            assert_eq!(refused.unwrap_err(), Errno::PERM);
            assert_eq!(identity(), before);
            return;
        }
        for group in [None, Some(Gid::from_raw(4444))] {
            let guard = own.assume(ids(4242, 4343), group).unwrap();
            let now = identity();
            assert_eq!((now.0, now.1), (4242, 4343));
            assert_eq!(
                now.2,
                group.map_or(before.2.clone(), |group| vec![group.as_raw()])
            );
            assert_eq!(now.3, CapabilitySet::DAC_OVERRIDE);
            drop(guard);
            assert_eq!(identity(), before);
        }
    }

    #[test]
    fn root_of_the_guest_takes_on_no_group() {
        let own = Credentials::current().unwrap();
        let before = identity();
        let guard = own.assume(ids(before.0, before.1), Some(Gid::from_raw(4444)));
        assert_eq!(identity(), before);
        drop(guard);
        assert_eq!(identity(), before);
    }

    #[test]
    fn what_was_changed_before_a_step_failed_is_undone() {
        if !geteuid().is_root() {
            println!("skips itself: it needs root");
            return;
        }
        // Capabilities belong to a thread: this one may change groups, not users.
        let without_setuid = || {
            let mut sets = capabilities(None).unwrap();
            sets.effective -= CapabilitySet::SETUID;
            sets.permitted -= CapabilitySet::SETUID;
            set_capabilities(None, sets).unwrap();
            let own = Credentials::current().unwrap();
            let before = identity();
            for group in [None, Some(Gid::from_raw(4444))] {
                let refused = own.assume(ids(4242, 4343), group);
                assert_eq!(refused.unwrap_err(), Errno::PERM);
                assert_eq!(identity(), before);
            }
        };
        std::thread::spawn(without_setuid).join().unwrap();
    }

    #[test]
    fn the_daemons_own_group_is_left_where_it_is_a_files() {
        let own = Credentials::current().unwrap();
        let before = identity();
        if !geteuid().is_root() {
            println!("skips itself: it needs root");
            return;
        }
        assert!(
            own.outside_of(Gid::from_raw(before.1 + 1))
                .unwrap()
                .is_none()
        );
        let guard = own.outside_of(Gid::from_raw(before.1)).unwrap();
        let now = identity();
        assert_eq!((now.0, now.3), (before.0, before.3));
        assert_ne!(now.1, before.1);
        let without = own.without_fsetid().unwrap();
        assert_eq!(identity().3, before.3 - CapabilitySet::FSETID);
        drop((guard, without));
        assert_eq!(identity(), before);
    }

    #[test]
    fn the_right_to_keep_set_id_bits_is_given_up_and_comes_back() {
        let own = Credentials::current().unwrap();
        let before = identity();
        let guard = own.without_fsetid().unwrap();
        assert_eq!(identity().3, before.3 - CapabilitySet::FSETID);
        drop(guard);
        assert_eq!(identity(), before);
    }
}
