//! Keeps thousands of agents that started at the same moment from doing the same at the same moment. No I/O.

use std::hash::{BuildHasher, DefaultHasher, Hash, Hasher, RandomState};
use std::time::Duration;

/// A part of `most` that is another one on each node, and always the same on one.
#[must_use]
pub fn spread(node_name: &str, most: Duration) -> Duration {
    let mut hasher = DefaultHasher::new();
    node_name.hash(&mut hasher);
    most.mul_f64(hasher.finish() as f64 / u64::MAX as f64)
}

/// A part of `most` that is another one each time.
#[must_use]
pub fn random_part(most: Duration) -> Duration {
    most.mul_f64(RandomState::new().hash_one(()) as f64 / u64::MAX as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_spread_evenly_and_each_stays_where_it_is() {
        let most = Duration::from_secs(70);
        let mut by_second = [0; 71];
        for node in 0..7000 {
            let name = format!("ip-10-0-{}-{}.internal", node / 256, node % 256);
            assert_eq!(spread(&name, most), spread(&name, most));
            by_second[spread(&name, most).as_secs() as usize] += 1;
        }
        assert!(by_second[..70].iter().all(|nodes| (50..=150).contains(nodes)), "{by_second:?}");
    }
}
