// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Percentiles, and which ratio of two medians chance alone would explain.

use serde::Serialize;

/// Fewest samples of which an interval is made.
pub const FEWEST: usize = 10;
/// Times that the samples are drawn again.
const ROUNDS: usize = 1000;

/// The distribution of one side of a row.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    pub samples: usize,
    pub min: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub max: u64,
    pub mean: f64,
}

/// What the comparison of a row comes to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(tag = "verdict", rename_all = "kebab-case")]
pub enum Verdict {
    /// The medians differ: the ratio, and the interval in which 95 of 100 draws have it.
    Differs { ratio: f64, low: f64, high: f64 },
    /// The interval holds 1: no ratio.
    NoDifference { low: f64, high: f64 },
    /// There are too few samples, or the median is 0.
    Unknown,
}

impl Spread {
    /// Of samples in any order; `None` without any.
    pub fn of(samples: &[u64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_unstable();
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        // The smallest sample that so many percent do not exceed.
        let percentile = |percent: usize| {
            let rank = (sorted.len() * percent).div_ceil(100);
            sorted[rank.max(1) - 1]
        };
        let sum: u128 = sorted.iter().map(|sample| u128::from(*sample)).sum();
        Some(Self {
            samples: sorted.len(),
            min,
            p50: percentile(50),
            p90: percentile(90),
            p99: percentile(99),
            max,
            mean: sum as f64 / sorted.len() as f64,
        })
    }
}

/// Compares the medians, the other's over the base's, by the bootstrap: both sides are drawn again from themselves, and
/// the middle 95 % of the ratios are the interval (Efron and Tibshirani, 1993, 13.3). The same samples give the same
/// interval.
pub fn compare(base: &[u64], other: &[u64]) -> Verdict {
    if base.len() < FEWEST || other.len() < FEWEST {
        return Verdict::Unknown;
    }
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut drawn = Vec::new();
    let mut median = |samples: &[u64]| {
        drawn.clear();
        drawn.extend((0..samples.len()).map(|_| samples[random.below(samples.len())]));
        middle(&mut drawn)
    };
    let mut ratios = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let (under, over) = (median(base), median(other));
        if under == 0 {
            return Verdict::Unknown;
        }
        ratios.push(over as f64 / under as f64);
    }
    ratios.sort_unstable_by(f64::total_cmp);
    let (low, high) = (ratios[ROUNDS / 40], ratios[ROUNDS - 1 - ROUNDS / 40]);
    if (low..=high).contains(&1.0) {
        return Verdict::NoDifference { low, high };
    }
    let (under, over) = (middle(&mut base.to_vec()), middle(&mut other.to_vec()));
    Verdict::Differs {
        ratio: over as f64 / under as f64,
        low,
        high,
    }
}

/// The median, as [`Spread::p50`] has it; 0 without samples.
fn middle(samples: &mut [u64]) -> u64 {
    let rank = samples.len().div_ceil(2).max(1) - 1;
    match samples.len() {
        0 => 0,
        _ => *samples.select_nth_unstable(rank).1,
    }
}

/// Numbers that look random (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        // The high half of the product: as good as even for limits far below 2^64.
        (u128::from(z) * limit as u128 >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `count` numbers from `from` on, in an order that is none.
    fn samples(from: u64, width: u64, count: usize) -> Vec<u64> {
        let mut random = Random(from ^ count as u64);
        (0..count)
            .map(|_| from + random.below(width as usize) as u64)
            .collect()
    }

    #[test]
    fn percentiles_are_samples() {
        let all: Vec<u64> = (1..=100).rev().collect();
        let spread = Spread::of(&all).unwrap();
        assert_eq!((spread.p50, spread.p90, spread.p99), (50, 90, 99));
        assert_eq!((spread.min, spread.max, spread.samples), (1, 100, 100));
        let one = Spread::of(&[7]).unwrap();
        assert_eq!((one.min, one.p50, one.p99, one.max), (7, 7, 7, 7));
        assert!(Spread::of(&[]).is_none());
    }

    #[test]
    fn what_differs_has_a_ratio() {
        let (base, other) = (samples(1000, 200, 500), samples(500, 100, 500));
        match compare(&base, &other) {
            Verdict::Differs { ratio, low, high } => {
                assert!(low <= ratio && ratio <= high, "{low} {ratio} {high}");
                assert!((0.45..0.55).contains(&ratio) && high - low < 0.05);
            }
            other => panic!("{other:?}"),
        }
        // Counted instructions: always the same.
        assert_eq!(
            compare(&[100; 20], &[50; 20]),
            Verdict::Differs {
                ratio: 0.5,
                low: 0.5,
                high: 0.5
            }
        );
    }

    #[test]
    fn what_chance_explains_has_none() {
        let (base, other) = (samples(1000, 200, 300), samples(1000, 200, 301));
        assert!(
            matches!(compare(&base, &other), Verdict::NoDifference { low, high } if low <= 1.0 && high >= 1.0)
        );
        assert!(matches!(
            compare(&[5; 20], &[5; 20]),
            Verdict::NoDifference { .. }
        ));
    }

    #[test]
    fn few_samples_say_nothing() {
        assert_eq!(compare(&[1; 9], &[2; 50]), Verdict::Unknown);
        assert_eq!(compare(&[0; 50], &[2; 50]), Verdict::Unknown);
    }

    #[test]
    fn an_interval_holds_the_truth_in_most_draws() {
        // 100 pairs from one distribution: about five intervals miss 1.
        let missed = (0..100u64)
            .filter(|n| {
                let base = samples(1000 + n * 7919, 1000, 60);
                let shifted: Vec<u64> = samples(1 << 40 | n * 104_729, 1000, 60);
                let moved = shifted
                    .iter()
                    .map(|s| s - (1 << 40 | n * 104_729) + 1000 + n * 7919);
                matches!(
                    compare(&base, &moved.collect::<Vec<_>>()),
                    Verdict::Differs { .. }
                )
            })
            .count();
        assert!(missed <= 15, "{missed} of 100");
    }
}
