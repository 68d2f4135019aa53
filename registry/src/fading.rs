//! Values that are good for some time after they were put. Does no I/O.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

const MOST: usize = 10_000;

/// Values by key, each for the same time.
pub struct Fading<K, V> {
    life: Duration,
    values: Mutex<HashMap<K, (Instant, V)>>,
}

impl<K: Eq + Hash, V: Clone> Fading<K, V> {
    /// With none.
    pub fn new(life: Duration) -> Self {
        Self { life, values: Mutex::default() }
    }

    /// What was put, if that is not too long ago.
    pub fn get(&self, key: &K) -> Option<V> {
        let values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        values.get(key).filter(|(at, _)| at.elapsed() < self.life).map(|(_, value)| value.clone())
    }

    /// Replaces what was put before.
    pub fn put(&self, key: K, value: V) {
        let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        if values.len() >= MOST {
            values.retain(|_, (at, _)| at.elapsed() < self.life);
            if values.len() >= MOST {
                // Whoever misses one of them asks once more.
                values.clear();
            }
        }
        values.insert(key, (Instant::now(), value));
    }

    /// Forgets one of them.
    pub fn remove(&self, key: &K) {
        self.values.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    /// Forgets all of them.
    pub fn clear(&self) {
        self.values.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_fades_and_is_bounded() {
        let long = Fading::new(Duration::from_secs(600));
        for key in 0..=MOST {
            long.put(key, key);
        }
        assert_eq!((long.get(&MOST), long.get(&0)), (Some(MOST), None));
        let short = Fading::new(Duration::ZERO);
        short.put(0, ());
        assert_eq!(short.get(&0), None);
    }
}
