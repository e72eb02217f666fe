//! Sets of options in which each pair of settings is met.

/// A setting of each option; the first is the default.
pub const OPTIONS: [&[&str]; 10] = [
    &["", "--cache=never", "--cache=always", "--cache=metadata"],
    &["", "--writeback"],
    &["", "--xattr"],
    &["", "--posix-acl"],
    &[
        "",
        "--inode-file-handles=never",
        "--inode-file-handles=prefer",
    ],
    &["", "--sandbox=chroot", "--sandbox=none"],
    &["", "--thread-pool-size=4", "--thread-pool-size=0"],
    &["", "--allow-mmap"],
    &["", "--allow-direct-io"],
    &["", "--no-announce-submounts"],
];

/// Sets of settings that have each pair of two in one of them.
pub fn all_pairs() -> Vec<Vec<&'static str>> {
    let mut left: Vec<[(usize, usize); 2]> = Vec::new();
    for (a, settings) in OPTIONS.iter().enumerate() {
        for (b, others) in OPTIONS.iter().enumerate().skip(a + 1) {
            for x in 0..settings.len() {
                left.extend((0..others.len()).map(|y| [(a, x), (b, y)]));
            }
        }
    }
    let mut sets = Vec::new();
    while let Some(&[(a, x), (b, y)]) = left.first() {
        let mut chosen: Vec<Option<usize>> = vec![None; OPTIONS.len()];
        (chosen[a], chosen[b]) = (Some(x), Some(y));
        for option in 0..OPTIONS.len() {
            if chosen[option].is_some() {
                continue;
            }
            let met = |setting: usize| {
                let is_met = |pair: &&[(usize, usize); 2]| {
                    let has = |(of, is): (usize, usize)| {
                        of == option && is == setting || chosen[of] == Some(is)
                    };
                    pair.iter().any(|(of, _)| *of == option) && pair.iter().all(|at| has(*at))
                };
                left.iter().filter(is_met).count()
            };
            chosen[option] = (0..OPTIONS[option].len()).max_by_key(|setting| met(*setting));
        }
        left.retain(|pair| !pair.iter().all(|(of, is)| chosen[*of] == Some(*is)));
        let words = chosen.iter().enumerate();
        let words = words.map(|(option, setting)| OPTIONS[option][setting.unwrap()]);
        sets.push(words.filter(|word| !word.is_empty()).collect());
    }
    sets
}
