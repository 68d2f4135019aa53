//! How much a connection to a Pod passes on at once. Large portions cost the processor less, small ones the node's memory: a few
//! connections have large ones, as many as a pull uses, and all others small ones.

use tokio::sync::{Semaphore, SemaphorePermit};

/// All of the agent's connections together have so many large ones.
const FEW: usize = 4;
static LARGE_ONES: Semaphore = Semaphore::const_new(FEW);

/// What one connection passes on at once.
#[derive(Debug)]
pub(super) struct Portion {
    pub(super) bytes: usize,
    /// Given back when the connection is closed.
    large: Option<SemaphorePermit<'static>>,
}

impl Portion {
    pub(super) fn small() -> Self {
        Self { bytes: 16 * 1024, large: None }
    }

    /// A large one while few have one.
    pub(super) fn large_if_allotted() -> Self {
        Self::allotted(&LARGE_ONES)
    }

    fn allotted(large_ones: &'static Semaphore) -> Self {
        // It is never closed, and if it were, nobody would have a large one.
        match large_ones.try_acquire().ok() {
            None => Self::small(),
            large => Self { bytes: 64 * 1024, large },
        }
    }

    pub(super) fn is_large(&self) -> bool {
        self.large.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_ones_are_few_and_that_of_a_closed_connection_is_anothers() {
        static TWO: Semaphore = Semaphore::const_new(2);
        let mut held: Vec<_> = (0..3).map(|_| Portion::allotted(&TWO)).collect();
        assert_eq!(held.iter().map(Portion::is_large).collect::<Vec<_>>(), [true, true, false]);
        drop(held.remove(0));
        let next = Portion::allotted(&TWO);
        assert!(next.is_large() && next.bytes > Portion::small().bytes);
        assert!(!Portion::allotted(&TWO).is_large());
    }
}
