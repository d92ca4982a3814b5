//! Detects failed statements on a connection of the pool, including the engine's own statements.

use diesel::connection::{Instrumentation, InstrumentationEvent, get_default_instrumentation};
use diesel::prelude::*;

use crate::error::advice_on;

/// Stores whether a statement failed with an error that requires another connection. It replaces Diesel's default
/// instrumentation, and passes all events on to it.
struct Watch {
    saw_broken: bool,
    default: Option<Box<dyn Instrumentation>>,
}

impl Instrumentation for Watch {
    fn on_connection_event(&mut self, event: InstrumentationEvent<'_>) {
        if let InstrumentationEvent::FinishQuery { error: Some(error), .. } = &event {
            self.saw_broken |= advice_on(*error).requires_another_connection();
        }
        if let Some(default) = &mut self.default {
            default.on_connection_event(event);
        }
    }
}

pub(super) fn watch(conn: &mut PgConnection) {
    conn.set_instrumentation(Watch { saw_broken: false, default: get_default_instrumentation() });
}

/// Whether a statement failed with such an error. Returns `false` if the engine has set another instrumentation.
pub(super) fn saw_broken(conn: &mut PgConnection) -> bool {
    conn.instrumentation().downcast_ref().is_some_and(|watch: &Watch| watch.saw_broken)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use diesel::connection::{Instrumentation, InstrumentationEvent};

    use super::Watch;

    #[test]
    fn the_default_instrumentation_receives_the_events() {
        let seen = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&seen);
        let default = move |_: InstrumentationEvent<'_>| {
            counter.fetch_add(1, Ordering::Relaxed);
        };
        let mut watch = Watch { saw_broken: false, default: Some(Box::new(default)) };
        watch.on_connection_event(InstrumentationEvent::begin_transaction(NonZeroU32::MIN));
        assert_eq!((seen.load(Ordering::Relaxed), watch.saw_broken), (1, false));
    }
}
