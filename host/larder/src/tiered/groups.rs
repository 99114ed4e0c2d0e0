//! Groups of copies (all, those whose keys begin alike, those with a tag) that are invalidated in constant time.
//!
//! There is one counter. To invalidate a group is to advance it and to write down its value for the group. A copy has the
//! value that the counter had before its load began, its *stamp*; it is superseded if a group of its own was invalidated
//! after that. So nothing is touched when a group is invalidated, and a read looks up the tags that its copy carries.
//!
//! What is written down stays, for no one knows which copies are left. Where that becomes too much, *all* is invalidated
//! instead, which says more than is true and never less.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::far::GroupVersion;

/// Copies that are invalidated together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Group {
    /// All whose keys begin so.
    Prefix(Arc<str>),
    /// All that carry this tag.
    Tag(Arc<str>),
}

/// When a group was invalidated last, by the counter; of the last soft one, also the time.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Version {
    pub(crate) hard: u64,
    pub(crate) soft: u64,
    pub(crate) soft_at: u64,
}

/// What invalidations of groups have done to a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reached {
    /// Nothing.
    Untouched,
    /// It ended then.
    Ended(u64),
    /// It is gone.
    Superseded,
}

/// So many groups are remembered before all is invalidated instead.
const MOST: usize = 100_000;

/// All groups of a tier.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    counter: u64,
    all: Version,
    prefixes: HashMap<Arc<str>, Version, RandomState>,
    /// The lengths of the prefixes, and how many have each.
    lengths: BTreeMap<usize, usize>,
    tags: HashMap<Arc<str>, Version, RandomState>,
}

impl Groups {
    /// The stamp of what is loaded from now on.
    pub(crate) fn stamp(&self) -> u64 {
        self.counter
    }

    /// Invalidates a group; the counter's new value.
    pub(crate) fn bump(&mut self, group: &Group, soft: bool, now: u64) -> u64 {
        self.counter += 1;
        let counter = self.counter;
        if self.prefixes.len() + self.tags.len() >= MOST {
            self.prefixes.clear();
            self.lengths.clear();
            self.tags.clear();
            self.all.hard = counter;
        }
        let version = self.version(group);
        if soft {
            (version.soft, version.soft_at) = (counter, now);
        } else {
            version.hard = counter;
        }
        counter
    }

    fn version(&mut self, group: &Group) -> &mut Version {
        match group {
            Group::Prefix(prefix) if prefix.is_empty() => &mut self.all,
            Group::Prefix(prefix) => {
                let lengths = &mut self.lengths;
                self.prefixes.entry(prefix.clone()).or_insert_with(|| {
                    *lengths.entry(prefix.len()).or_default() += 1;
                    Version::default()
                })
            }
            Group::Tag(tag) => self.tags.entry(tag.clone()).or_default(),
        }
    }

    /// Takes over what a shared store has of a group. It bounds their number.
    #[cfg(any(feature = "redis", feature = "memcached", feature = "disk"))]
    pub(crate) fn learn(&mut self, group: &Group, version: Version) {
        let known = self.version(group);
        known.hard = known.hard.max(version.hard);
        if version.soft > known.soft {
            (known.soft, known.soft_at) = (version.soft, version.soft_at);
        }
    }

    /// All is known up to this value of the store's counter.
    #[cfg(any(feature = "redis", feature = "memcached", feature = "disk"))]
    pub(crate) fn learned_until(&mut self, counter: u64) {
        self.counter = self.counter.max(counter);
    }

    /// All groups that were ever invalidated.
    pub(crate) fn versions(&self) -> impl Iterator<Item = (Group, Version)> {
        let prefixes = self.prefixes.iter().map(|(prefix, version)| (Group::Prefix(prefix.clone()), *version));
        let tags = self.tags.iter().map(|(tag, version)| (Group::Tag(tag.clone()), *version));
        let all = (self.all.hard > 0 || self.all.soft > 0).then(|| (Group::Prefix("".into()), self.all));
        prefixes.chain(tags).chain(all)
    }

    /// The same as operators see them.
    pub(crate) fn listed(&self) -> Vec<GroupVersion> {
        let of = |(group, Version { hard, soft, .. })| GroupVersion { group, hard, soft };
        self.versions().map(of).collect()
    }

    /// How many groups are remembered, beside all.
    #[cfg(feature = "disk")]
    pub(crate) fn len(&self) -> usize {
        self.prefixes.len() + self.tags.len()
    }

    /// When a group was invalidated.
    #[cfg(feature = "disk")]
    pub(crate) fn version_of(&self, group: &Group) -> Version {
        let found = match group {
            Group::Prefix(prefix) if prefix.is_empty() => Some(&self.all),
            Group::Prefix(prefix) => self.prefixes.get(prefix),
            Group::Tag(tag) => self.tags.get(tag),
        };
        found.copied().unwrap_or_default()
    }

    /// What has reached a copy with this stamp.
    pub(crate) fn reached(&self, key: &str, tags: &[Arc<str>], stamp: u64) -> Reached {
        if stamp >= self.counter {
            return Reached::Untouched;
        }
        let prefixes = self.lengths.keys().filter_map(|&length| self.prefixes.get(key.get(..length)?));
        let tags = tags.iter().filter_map(|tag| self.tags.get(tag));
        let mut reached = Reached::Untouched;
        for version in prefixes.chain(tags).chain([&self.all]) {
            if version.hard > stamp {
                return Reached::Superseded;
            }
            if version.soft > stamp {
                let before = if let Reached::Ended(at) = reached { at } else { u64::MAX };
                reached = Reached::Ended(before.min(version.soft_at));
            }
        }
        reached
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(names: &[&str]) -> Vec<Arc<str>> {
        names.iter().map(|name| Arc::from(*name)).collect()
    }

    #[test]
    fn a_group_reaches_its_own_and_what_was_loaded_before() {
        let mut groups = Groups::default();
        let before = groups.stamp();
        groups.bump(&Group::Tag("red".into()), false, 10);
        let red = tags(&["blue", "red"]);
        assert_eq!(groups.reached("k", &red, before), Reached::Superseded);
        assert_eq!(groups.reached("k", &tags(&["blue"]), before), Reached::Untouched);
        assert_eq!(groups.reached("k", &red, groups.stamp()), Reached::Untouched);

        let before = groups.stamp();
        groups.bump(&Group::Prefix("user/".into()), true, 20);
        assert_eq!(groups.reached("user/1", &[], before), Reached::Ended(20));
        assert_eq!(groups.reached("use", &[], before), Reached::Untouched);
        // A length that falls within a character is no prefix.
        assert_eq!(groups.reached("useré", &[], before), Reached::Untouched);
        groups.bump(&Group::Prefix("".into()), false, 30);
        assert_eq!(groups.reached("anything", &[], before), Reached::Superseded);
    }

    #[test]
    fn too_many_groups_become_all() {
        let mut groups = Groups::default();
        let before = groups.stamp();
        for i in 0..=MOST {
            groups.bump(&Group::Tag(i.to_string().into()), false, 0);
        }
        assert!(groups.tags.len() < 10);
        assert_eq!(groups.reached("k", &tags(&["0"]), before), Reached::Superseded);
        assert_eq!(groups.reached("k", &[], groups.stamp()), Reached::Untouched);
    }
}
