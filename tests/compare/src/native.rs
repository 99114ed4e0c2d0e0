//! The built-in policies as plain Rust in the same engine: the algorithms that the components are made of, linked into
//! this program. What differs between a built-in and its native twin is WebAssembly and the way into it, and nothing
//! else.

use anyhow::{Context, Result};
use larder::eviction::{Batch, Entries, Eviction, Fault, Limits, Ranking, Slot};
use larder::{Policy, PolicyError};
use larder_guest::{Parameters, Shard};

/// A guest's policy as the host sees it.
struct Native<P>(Shard<P>);

fn guest_entries(entries: &Entries) -> larder_guest::Entries<'_> {
    let Entries { slots, fingerprints, weights, costs, expiries } = entries;
    larder_guest::Entries { slots, fingerprints, weights, costs, expiries }
}

impl<P: larder_guest::Eviction + Send> Eviction for Native<P> {
    fn advance(&mut self, batch: &Batch, victims: &mut Vec<Slot>) -> Result<(), Fault> {
        victims.extend(self.0.advance(&larder_guest::Batch {
            now: batch.now,
            departed: &batch.departed,
            changed: guest_entries(&batch.changed),
            touched: &batch.touched,
            touches: &batch.touches,
            arrived: guest_entries(&batch.arrived),
        }));
        Ok(())
    }

    fn residents(&mut self) -> Result<Ranking, Fault> {
        let (slots, uses) = self.0.residents();
        Ok(Ranking { slots, uses })
    }

    fn learned(&mut self) -> Result<Vec<u8>, Fault> {
        Ok(self.0.learned())
    }

    fn recall(&mut self, learned: &[u8]) -> Result<bool, Fault> {
        Ok(self.0.recall(learned))
    }

    fn adopt(&mut self, residents: &Entries, uses: &[u32], victims: &mut Vec<Slot>) -> Result<(), Fault> {
        victims.extend(self.0.adopt(&guest_entries(residents), uses));
        Ok(())
    }
}

fn of<P: larder_guest::Eviction + Send>() -> Policy {
    Policy::native(P::ABOUT.name, |limits| {
        let Limits { capacity, expected, seed } = *limits;
        let parameters = Parameters::defaults(&P::ABOUT);
        let opened = Shard::<P>::open(&larder_guest::Limits { capacity, expected, seed }, &parameters);
        let shard = opened.map_err(|refusal| PolicyError::Refused {
            policy: P::ABOUT.name.into(),
            parameter: (!refusal.parameter.is_empty()).then_some(refusal.parameter),
            message: refusal.message,
        })?;
        Ok(Box::new(Native(shard)))
    })
}

/// The native twin of a built-in, at the defaults of its parameters, as the built-in is.
pub fn twin(builtin: &str) -> Result<Policy> {
    let twins = [
        of::<larder_modules::adaptive::Adaptive>,
        of::<larder_modules::arc::Arc>,
        of::<larder_modules::fifo::Fifo>,
        of::<larder_modules::lfu::Lfu>,
        of::<larder_modules::lirs::Lirs>,
        of::<larder_modules::lru::Lru>,
        of::<larder_modules::random::Random>,
        of::<larder_modules::s3_fifo::S3Fifo>,
        of::<larder_modules::sieve::Sieve>,
        of::<larder_modules::ttl::Ttl>,
        of::<larder_modules::two_q::TwoQ>,
        of::<larder_modules::w_tinylfu::WTinyLfu>,
    ];
    let mut policies = twins.into_iter().map(|twin| twin());
    let found = policies.find(|policy| policy.to_string() == builtin);
    found.with_context(|| format!("no native twin of the built-in `{builtin}`: add its type to native.rs"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_builtin_has_a_twin() -> Result<()> {
        for builtin in Policy::builtins() {
            assert_eq!(twin(builtin)?.load()?.name(), builtin);
        }
        assert!(twin("clock").is_err());
        Ok(())
    }
}
