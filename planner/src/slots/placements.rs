//! How one placement begins and ends: booked, numbered, said, and given back.
//!
//! Owns what a start and a stop change in the pass, in the pool and in the plan. Which of them are due is
//! decided around it.

use std::collections::BTreeSet;
use std::sync::Arc;

use wasmorch_api::{EventKind, HostId, Slot};

use super::{Pass, SAID_EACH, SAID_STARTS, Seat, Standing};
use crate::booked::Booked;
use crate::cluster::Placed;
use crate::fill::Ground;
use crate::place;
use crate::plan::{Start, Stop, StopReason};
use crate::pool::Rank;
use crate::ports;
use crate::write::EventDraft;

impl Pass<'_> {
    /// Places the slot on the best host; counts it as unplaced when none has room.
    pub(crate) fn start(&mut self, slot: Slot, args: Option<Vec<String>>) -> bool {
        if !self.may_start(slot) {
            return false;
        }
        let at_home = self.home(slot).is_some();
        if self.full && !at_home {
            self.unplaced += 1;
            return false;
        }
        let Some(rank) = self.book(slot, args.as_ref()) else {
            self.unplaced += 1;
            self.in_vain = Some(self.target.clone());
            // Hosts of their own, and a quota that a successor may be within, tell nothing of other slots.
            self.full |= !at_home && self.seating.is_none() && self.over_quota.is_none();
            return false;
        };
        self.seat_on(slot, rank, args);
        true
    }

    /// Places the slot on this very host, if it passes every filter.
    pub(crate) fn start_on(&mut self, slot: Slot, host: &HostId) -> bool {
        if !self.may_start(slot) {
            return false;
        }
        self.end_fill();
        let elsewhere = self.home(slot).is_some_and(|home| home != host);
        let Some(rank) = self.pool.rank(host).filter(|_| !elsewhere) else {
            return false;
        };
        let fits = self.with_standpoint(None, |on| place::fits_on(on, host));
        let wants = Booked::of(self.key, &self.target.spec, None);
        if !fits || !self.within_quota(slot, wants) || !self.pool.take(rank) {
            return false;
        }
        self.pool.book(rank, wants);
        self.pool.put(rank);
        let ports = ports::of(&self.target.spec);
        self.pool.claim(rank, ports, self.key);
        self.seat_on(slot, rank, None);
        true
    }

    /// Numbers a placement on a host on which it is booked already.
    fn seat_on(&mut self, slot: Slot, rank: Rank, args: Option<Vec<String>>) {
        let number = self.record.next_placement;
        self.record.next_placement = number.next();
        let room = self.pool.room(rank);
        let host = room.id.clone();
        let revision = self.record.revision;
        let displaced = std::mem::take(&mut self.displaced);
        let few = self.said_placed < SAID_EACH && self.plan.start.len() < SAID_STARTS;
        if few || !displaced.is_empty() {
            self.said_placed += u32::from(displaced.is_empty());
            let mut reason = format!("slot {slot} on {}", room.name);
            if !displaced.is_empty() {
                reason.push_str(", in place of ");
                reason.push_str(&displaced.join(", "));
            }
            let event = EventDraft::of(self.key, EventKind::Placed, reason);
            self.plan.events.push(event.revision(revision).host(&host));
        } else {
            self.placed += 1;
        }
        let class = Some(self.pool.class_of(rank));
        self.delta.add(self.pool, &host, class, 1);
        self.settle(slot, &host);
        let standby = self.record.rests(&self.target.spec);
        let args = args.map(Arc::new);
        self.plan.start.push(Start {
            key: self.key.clone(),
            slot,
            placement: number,
            revision,
            host: host.clone(),
            standby,
            args: args.clone(),
        });
        let placed = Placed {
            slot,
            revision,
            host,
            standby,
            args,
        };
        let seat = Seat {
            number,
            placed,
            standing: Standing::Starting,
            fresh: true,
            leaves: None,
        };
        self.counting(slot, |pass| drop(pass.seats.insert((slot, number), seat)));
    }

    /// Books a replica on the best host for a slot, or on the slot's own.
    fn book(&mut self, slot: Slot, args: Option<&Vec<String>>) -> Option<Rank> {
        let wants = Booked::of(self.key, &self.target.spec, args);
        if !self.within_quota(slot, wants) {
            return None;
        }
        if let Some(seating) = &self.seating {
            let rank = self.pool.rank(seating.open(slot)?)?;
            let ports = ports::of(&self.target.spec);
            if !self.pool.ports_free(self.cluster, rank, ports) {
                return None;
            }
            if !self.pool.fits(rank, wants) {
                return self.preempt(slot, wants, &BTreeSet::new());
            }
            self.pool.take(rank);
            self.pool.book(rank, wants);
            self.pool.put(rank);
            self.pool.claim(rank, ports, self.key);
            return Some(rank);
        }
        let failed = self.failed_on(slot);
        let Some(rank) = self.seat_for(slot, args, &failed) else {
            // One with volumes waits for room where they are.
            if self.home(slot).is_some() {
                return None;
            }
            return self.preempt(slot, wants, &failed);
        };
        if let Some(fill) = &mut self.fill {
            let ground = Ground {
                cluster: self.cluster,
                key: self.key,
                workload: self.workload,
                delta: &self.delta,
            };
            fill.take(&ground, self.pool, rank);
        }
        Some(rank)
    }

    /// Hosts where this slot failed at the wanted revision, as far as is remembered.
    fn failed_on(&self, slot: Slot) -> BTreeSet<Rank> {
        let failed = self.workload.failed_on(slot, self.record.revision);
        failed.filter_map(|host| self.pool.rank(host)).collect()
    }

    pub(crate) fn stop_if_heard(&mut self, seat: &Seat, why: StopReason) {
        if seat.standing != Standing::Unheard {
            self.stop(seat, why);
        }
    }

    pub(crate) fn stop(&mut self, seat: &Seat, why: StopReason) {
        if self.vacated.take() != Some(seat.number) {
            self.vacate(seat);
        }
        if let Some(revision) = self.workload.revisions.get(&seat.placed.revision) {
            let args = seat.placed.args.as_deref();
            let booked = Booked::of(self.key, &revision.spec, args);
            self.pool.free(&seat.placed.host, booked);
            // Whatever else is stopped has its ports until it has ended; and where two hosts go by one id,
            // what this one has left another may hold.
            if matches!(seat.standing, Standing::GivenUp | Standing::Done) {
                let host = &seat.placed.host;
                let view = ports::View {
                    claims: Some(&self.pool.ports),
                    without: Some((self.key, seat.number)),
                };
                let free = |port: &&u16| ports::free(self.cluster, view, host, &[**port]);
                let free: Vec<u16> = { ports::of(&revision.spec).iter() }
                    .filter(free)
                    .copied()
                    .collect();
                self.pool.ports.give_back(host, &free);
            }
        }
        self.counting(seat.placed.slot, |pass| {
            pass.seats.remove(&(seat.placed.slot, seat.number));
        });
        self.plan.stop.push(Stop {
            key: self.key.clone(),
            slot: seat.placed.slot,
            placement: seat.number,
            host: seat.placed.host.clone(),
            why,
        });
    }
}
