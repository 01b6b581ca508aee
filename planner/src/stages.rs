//! `by = "zone"`: a rollout goes through the values of a host label, one after the other.
//!
//! Owns which value's turn it is. A slot belongs to the value of the host that its replica runs on; its
//! successor starts on a host of the same value, else a new revision would be everywhere before the
//! first value is done. Values go in their order as text, hosts without the label last, and the next
//! begins when every slot of the one before is available at the new revision.
//!
//! With stop-first the slot is empty between the two, and is placed like any other: where it goes is
//! `spread`'s choice.

use std::collections::BTreeSet;
use std::sync::Arc;

use wasmorch_api::spec::{Constraint, LabelTest};
use wasmorch_api::{Revision, Slot};

use crate::slots::{Pass, Seat, Standing};
use crate::{place, pool};

/// The part of a rollout whose turn it is.
pub(crate) struct Stage {
    label: String,
    /// `None`: hosts without the label.
    value: Option<String>,
    slots: BTreeSet<Slot>,
}

impl Stage {
    /// Whether the slot's replica may be replaced now.
    pub(crate) fn has(&self, slot: Slot) -> bool {
        self.slots.contains(&slot)
    }

    fn constraint(&self) -> Constraint {
        let test = self.value.clone();
        Constraint::Label {
            label: self.label.clone(),
            test: test.map_or(LabelTest::Exists(false), LabelTest::Eq),
        }
    }
}

/// The first value that has a slot left to replace.
pub(crate) fn current(pass: &mut Pass<'_>, label: &str) -> Option<Stage> {
    let mut first: Option<Stage> = None;
    for slot in pass.wanted() {
        // One on a host that takes nothing new keeps what it has: nobody waits for it.
        if pass.passed_over(slot) {
            continue;
        }
        let seats: Vec<Seat> = pass.seats_of(slot).cloned().collect();
        let old = seats.iter().find(|seat| !seat.fresh);
        let Some(seat) = old.or(seats.first()) else {
            continue;
        };
        // Nobody waits for what a dead host may still run.
        if seat.standing == Standing::Gone || old.is_none() && pass.available(seat) {
            continue;
        }
        let host = pass.cluster.hosts.get(&seat.placed.host);
        let value = host.map(crate::Host::info).and_then(|info| match label {
            place::HOST => Some(info.name.to_string()),
            pool::ARCH => Some(info.arch.clone()),
            label => info.labels.get(label).cloned(),
        });
        let order = |value: &Option<String>| (value.is_none(), value.clone());
        match &mut first {
            Some(stage) if order(&stage.value) < order(&value) => {}
            Some(stage) if stage.value == value => drop(stage.slots.insert(slot)),
            _ => {
                first = Some(Stage {
                    label: label.to_owned(),
                    value,
                    slots: BTreeSet::from([slot]),
                });
            }
        }
    }
    first
}

/// From here on whatever starts goes to hosts of the stage; the target as it was, for [`widen`].
pub(crate) fn narrow(pass: &mut Pass<'_>, stage: &Stage) -> Arc<Revision> {
    let mut narrow = (*pass.target).clone();
    narrow.spec.constraints.push(stage.constraint());
    pass.aim(Arc::new(narrow))
}

/// And anywhere again.
pub(crate) fn widen(pass: &mut Pass<'_>, whole: Arc<Revision>) {
    pass.aim(whole);
}
