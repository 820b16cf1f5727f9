//! State that threads share, and that a forked child can go on with.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::sleep;
use std::time::Duration;

/// A mutex that a fork cannot leave locked for ever. A child has its parent's memory and none of its threads: where one
/// of them held the lock at the fork, nobody in the child will release it.
#[derive(Debug)]
pub(crate) struct Shared<T> {
    state: Mutex<T>,
    /// The process whose threads may hold the lock; 0 before the first use.
    process: AtomicU32,
    /// The process in which the state was found to be lost.
    lost_in: AtomicU32,
}

impl<T> Shared<T> {
    /// How long a process waits for a lock that it has never had, before the lock counts as its parent's.
    const PATIENCE: Duration = Duration::from_secs(2);
    const PAUSE: Duration = Duration::from_millis(1);

    pub(crate) const fn new(state: T) -> Self {
        Self { state: Mutex::new(state), process: AtomicU32::new(0), lost_in: AtomicU32::new(0) }
    }

    /// The state, locked; `None` in a child that was forked while a thread of its parent was changing the state, which
    /// may be half changed for ever. A state poisoned by an earlier panic is used as it is.
    pub(crate) fn lock(&self) -> Option<MutexGuard<'_, T>> {
        let own = std::process::id();
        let mut waited = Duration::ZERO;
        while self.process.load(Ordering::Acquire) != own {
            match self.state.try_lock() {
                Ok(guard) => return Some(self.first_of(own, guard)),
                Err(TryLockError::Poisoned(poisoned)) => {
                    return Some(self.first_of(own, poisoned.into_inner()));
                }
                Err(TryLockError::WouldBlock) => {}
            }
            if waited >= Self::PATIENCE || self.lost_in.load(Ordering::Acquire) == own {
                self.lost_in.store(own, Ordering::Release);
                return None;
            }
            sleep(Self::PAUSE); // another thread of this process may be about to say that it is its own
            waited += Self::PAUSE;
        }
        Some(self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn first_of<'a>(&self, process: u32, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.process.store(process, Ordering::Release);
        guard
    }
}
