//! Options that parse, but whose part of the daemon is still to come.
//!
//! They are refused rather than ignored: whoever asks for a barrier or for a
//! promise to the guest must not believe that it is there. The change that
//! brings a part deletes its line here.

use anyhow::bail;

use super::Options;
use super::options::FileHandles;

/// An option that is not there yet.
struct Later {
    /// As the operator writes it.
    option: &'static str,
    /// Whether the command line asks for it.
    is_asked: fn(&Options) -> bool,
    /// What to do meanwhile.
    instead: &'static str,
}

const TABLE: &[Later] = &[Later {
    option: "--inode-file-handles=mandatory",
    is_asked: |o| o.inode_file_handles == FileHandles::Mandatory,
    instead: "use prefer, with which descriptors are held",
}];

/// Refuses to start with an option that is still to come.
///
/// # Errors
/// One sentence that names all such options and what to do instead.
pub fn refuse(options: &Options) -> anyhow::Result<()> {
    let asked: Vec<String> = TABLE
        .iter()
        .filter(|later| (later.is_asked)(options))
        .map(|later| format!("{} ({})", later.option, later.instead))
        .collect();
    if !asked.is_empty() {
        bail!("this version does not have yet: {}", asked.join(", "));
    }
    Ok(())
}
