//! One piece of work per key with any number of waiters. The work goes on when all waiters have left.

use std::{
    collections::HashMap,
    future::Future,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use tokio::sync::watch;

use crate::background::Background;

/// Work in progress, by key.
pub struct Coalesce<K, V> {
    running: Arc<Mutex<HashMap<K, Waiter<V>>>>,
    background: Background,
}

impl<K, V> Coalesce<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// With no work yet; `background` will own it.
    pub fn new(background: Background) -> Self {
        Self { running: Arc::default(), background }
    }

    /// The work for `key`, if there is any.
    pub fn find(&self, key: &K) -> Option<Waiter<V>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    /// Joins the work for `key`, starting it with `work` if there is none.
    pub fn join<F>(&self, key: K, work: impl FnOnce() -> F) -> Waiter<V>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waiter) = running.get(&key) {
            return waiter.clone();
        }
        let (sender, result) = watch::channel(None);
        let waiter = Waiter { began: Instant::now(), result };
        running.insert(key.clone(), waiter.clone());
        drop(running);
        let entry = Entry { key, running: Arc::clone(&self.running) };
        let work = work();
        self.background.spawn(async move {
            let value = work.await;
            // Removed first: whoever comes after the result was fixed must not get an old one.
            drop(entry);
            sender.send_replace(Some(value));
        });
        waiter
    }
}

/// Someone who waits for a result.
#[derive(Clone)]
pub struct Waiter<V> {
    /// When the work began.
    pub began: Instant,
    result: watch::Receiver<Option<V>>,
}

impl<V: Clone> Waiter<V> {
    /// The result; `None` if the work was ended because the process stops.
    pub async fn result(mut self) -> Option<V> {
        let value = self.result.wait_for(Option::is_some).await.ok()?;
        value.clone()
    }
}

/// Takes the key out even if the work is cancelled.
struct Entry<K: Eq + Hash, V> {
    key: K,
    running: Arc<Mutex<HashMap<K, Waiter<V>>>>,
}

impl<K: Eq + Hash, V> Drop for Entry<K, V> {
    fn drop(&mut self) {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn many_waiters_share_one_run_and_the_next_starts_anew() {
        let coalesce = Coalesce::<&str, u32>::new(Background::default());
        let runs = Arc::new(AtomicU32::new(0));
        let gate = Arc::new(tokio::sync::Notify::new());
        let start = || {
            let (runs, gate) = (Arc::clone(&runs), Arc::clone(&gate));
            coalesce.join("key", || async move {
                gate.notified().await;
                runs.fetch_add(1, Ordering::SeqCst) + 1
            })
        };
        let (first, second) = (start(), start());
        drop(start());
        gate.notify_one();
        assert_eq!((first.result().await, second.result().await), (Some(1), Some(1)));
        gate.notify_one();
        assert_eq!(start().result().await, Some(2));
    }

    #[tokio::test]
    async fn stopping_frees_the_waiters() {
        let background = Background::default();
        let coalesce = Coalesce::<u8, u8>::new(background.clone());
        let waiter = coalesce.join(1, std::future::pending);
        background.stop(std::time::Duration::from_secs(1)).await;
        assert_eq!(waiter.result().await, None);
    }
}
