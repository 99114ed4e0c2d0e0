//! What an operation remembers from one step to the next, in 64 bits: the stage it is in, what it has tried, the tier it
//! looks into, and how something failed that is still to be reported.

use larder_guest::patterns::Failure;

/// Where an operation is: which row of which table comes next. The numbers are in cookies and do not change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    /// Before its first step.
    #[default]
    Start = 0,
    /// A read or refresh looks into a tier.
    Look,
    /// It leads or waits.
    Join,
    /// It loads.
    Load,
    /// It waits until it loads again.
    Backoff,
    /// It loads, and its caller has been served already.
    LateLoad,
    /// It keeps what it loaded, and then is done.
    Keep,
    /// Write-through: it saves.
    ThroughSave,
    /// Write-through: it keeps.
    ThroughKeep,
    /// Write-behind: it logs.
    BehindLog,
    /// Write-behind: it keeps.
    BehindKeep,
    /// Write-around: it saves.
    AroundSave,
    /// Write, then invalidate: it saves.
    InvalidateSave,
    /// Put: it keeps.
    PutKeep,
    /// Flush: it saves.
    FlushSave,
    /// Flush: it waits until it saves again.
    FlushBackoff,
    /// Flush: it keeps.
    FlushKeep,
    /// Flush: it buries.
    FlushBury,
    /// It drops or expires, and then is at its end.
    Forget,
}

const STAGES: [Stage; 19] = [
    Stage::Start,
    Stage::Look,
    Stage::Join,
    Stage::Load,
    Stage::Backoff,
    Stage::LateLoad,
    Stage::Keep,
    Stage::ThroughSave,
    Stage::ThroughKeep,
    Stage::BehindLog,
    Stage::BehindKeep,
    Stage::AroundSave,
    Stage::InvalidateSave,
    Stage::PutKeep,
    Stage::FlushSave,
    Stage::FlushBackoff,
    Stage::FlushKeep,
    Stage::FlushBury,
    Stage::Forget,
];

const FAILURES: [Failure; 6] = [
    Failure::TimedOut,
    Failure::Unavailable,
    Failure::Overloaded,
    Failure::Rejected,
    Failure::Unreached,
    Failure::Unsupported,
];

/// A cookie, read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Where the operation is.
    pub stage: Stage,
    /// How often it has tried again.
    pub attempts: u8,
    /// How often it has joined again after a leader was lost.
    pub rejoined: u8,
    /// The tier that it looks into.
    pub tier: u8,
    /// What it is to fail with at its end.
    pub failure: Option<Failure>,
    /// A refresh: it was asked for while the copy in tier 0 was fresh, and that copy was so many milliseconds old. 0: it
    /// was not fresh.
    pub age_ms: u32,
}

impl Memory {
    /// What a cookie says, if it is one of these.
    pub fn of(cookie: u64) -> Option<Memory> {
        let [stage, attempts, rejoined_and_tier, failure, age @ ..] = cookie.to_le_bytes();
        let failure = match failure {
            0 => None,
            n => Some(*FAILURES.get(usize::from(n) - 1)?),
        };
        Some(Memory {
            stage: *STAGES.get(usize::from(stage))?,
            attempts,
            rejoined: rejoined_and_tier >> 4,
            tier: rejoined_and_tier & 0xf,
            failure,
            age_ms: u32::from_le_bytes(age),
        })
    }

    /// The cookie that says this.
    pub fn cookie(self) -> u64 {
        let failure = self.failure.map_or(0, |f| FAILURES.iter().position(|&g| g == f).map_or(0, |i| i as u8 + 1));
        let [a, b, c, d] = self.age_ms.to_le_bytes();
        u64::from_le_bytes([
            self.stage as u8,
            self.attempts,
            self.rejoined.min(15) << 4 | self.tier.min(15),
            failure,
            a,
            b,
            c,
            d,
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_read_back() {
        for (i, &stage) in STAGES.iter().enumerate() {
            assert_eq!(stage as usize, i);
            for failure in FAILURES.into_iter().map(Some).chain([None]) {
                let memory = Memory { stage, attempts: 200, rejoined: 2, tier: 7, failure, age_ms: 123_456_789 };
                assert_eq!(Memory::of(memory.cookie()), Some(memory));
            }
        }
        assert_eq!(Memory::of(0), Some(Memory::default()));
        assert_eq!(Memory::of(19), None);
        assert_eq!(Memory::of(7 << 24), None);
    }
}
