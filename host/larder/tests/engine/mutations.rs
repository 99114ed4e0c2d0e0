//! The short, always-run version of the fuzzing of modules: built-ins with damage, from seeds. Whatever the bytes are, the
//! answer is a policy or an error that says where, and a cache that runs what was let in still holds to its bound.
//!
//! The long one is `tests/fuzz`.

#[allow(dead_code)] // Only the well-behaved guest is of use here.
use crate::common::Random;
use crate::hostile::Guest;
use larder::{Cache, Policy};

/// Damage as it happens to files, and as somebody with an editor does.
fn damaged(original: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = original.to_vec();
    for _ in 0..=random.below(4) {
        let len = bytes.len() as u64;
        if len == 0 {
            break;
        }
        let at = random.below(len) as usize;
        match random.below(7) {
            0 => bytes.truncate(at),
            1 => bytes[at] ^= 1 << random.below(8),
            2 => bytes[at] = random.next() as u8,
            3 => drop(bytes.splice(at..at, [0xff; 5])),
            4 => {
                let end = (at + random.below(64) as usize).min(bytes.len());
                drop(bytes.drain(at..end));
            }
            5 => {
                let from = random.below(len) as usize;
                let piece = bytes[from..(from + 32).min(bytes.len())].to_vec();
                bytes.splice(at..at, piece);
            }
            // In the header, where little is enough.
            _ => bytes[(at % 64).min(len as usize - 1)] = random.next() as u8,
        }
    }
    bytes
}

#[test]
fn a_damaged_module_is_a_policy_or_an_error() {
    // A small one, so that damage hits what matters.
    let original = Guest::default().build();
    let mut random = Random(1);
    let mut errors = 0;
    for round in 0..300 {
        let bytes = damaged(&original, &mut random);
        match Policy::bytes(bytes).load() {
            Err(error) => {
                errors += 1;
                assert!(!error.to_string().is_empty(), "round {round}");
            }
            Ok(module) => {
                let cache = Cache::builder()
                    .max_capacity(20)
                    .policy(Policy::native("damaged", move |limits| module.open(limits)));
                let Ok(cache) = cache.build() else { continue };
                for key in 0..100u64 {
                    cache.insert(key, key);
                    assert!(cache.entry_count() <= 21);
                }
            }
        }
    }
    assert!(errors > 200, "{errors} of 300 are errors");
}
