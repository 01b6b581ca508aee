//! The best host of each cell that has room, looked for from where the last one was found.

use wasmorch_api::HostId;

use super::{Cell, Fill, Ground, Key};
use crate::place;
use crate::pool::{Pool, Rank};

impl Fill {
    /// The best host of a cell that has room.
    pub(super) fn head(&mut self, ground: &Ground<'_>, pool: &mut Pool, at: usize) -> Option<Key> {
        if let Some(head) = self.cells[at].head {
            return head;
        }
        let waiting = self.first_in_pool(ground, pool, at);
        let seen = match waiting {
            // Whatever was taken out has a replica more.
            Some(_) if self.per_host => None,
            _ => self.first_seen(ground, pool, at),
        };
        let head = match (waiting, seen) {
            (Some(waiting), Some(seen)) => Some(waiting.min(seen)),
            (waiting, seen) => waiting.or(seen),
        };
        self.cells[at].head = Some(head);
        head
    }

    /// The first host in the pool's order that has room (and, where each one weighs, no replica
    /// yet). When there is none left without a replica, all are taken out and ordered by count.
    fn first_in_pool(&mut self, ground: &Ground<'_>, pool: &mut Pool, at: usize) -> Option<Key> {
        if self.cells[at].own {
            return None;
        }
        let class = self.cells[at].class;
        let mut passed = self.cells[at].cursor;
        let mut near = 0;
        for next in pool.after(class, self.pack, passed) {
            let (_, rank) = next;
            let count = ground.count_near(pool, rank, &mut near);
            let crowded = self.per_host && count > 0;
            if !crowded && count < self.host_max && self.has_room(ground, pool, rank) {
                self.cells[at].cursor = passed;
                return Some((0, self.load_key(pool, rank), rank));
            }
            passed = Some(next);
        }
        self.cells[at].cursor = passed;
        if self.per_host && self.host_max > 1 {
            self.cells[at].own = true;
            for rank in pool.all(class) {
                pool.take(rank);
                let count = ground.count_near(pool, rank, &mut near);
                let key = (count, self.load_key(pool, rank), rank);
                self.cells[at].seen.insert(key);
            }
        }
        None
    }

    /// The first host that was taken out and has room; those without are put aside.
    fn first_seen(&mut self, ground: &Ground<'_>, pool: &Pool, at: usize) -> Option<Key> {
        while let Some(key) = self.cells[at].seen.first().copied() {
            let rank = key.2;
            let count = ground.count(pool, rank);
            let now = (if self.per_host { count } else { 0 }, key.1, rank);
            if count >= self.host_max || !self.has_room(ground, pool, rank) {
                self.cells[at].seen.remove(&key);
                self.cells[at].full.push(rank);
            } else if now == key {
                return Some(key);
            } else {
                self.cells[at].seen.remove(&key);
                self.cells[at].seen.insert(now);
            }
        }
        None
    }

    fn has_room(&self, ground: &Ground<'_>, pool: &Pool, rank: Rank) -> bool {
        pool.fits(rank, self.wants)
            && !(self.once && pool.room(rank).doubled)
            && self.named(pool, rank)
            && (self.ports.is_empty() || pool.ports_free(ground.cluster, rank, &self.ports))
    }

    /// Whether this very host may take one more replica, however it scores.
    pub(crate) fn admits(&self, ground: &Ground<'_>, pool: &Pool, rank: Rank) -> bool {
        let class = pool.class_of(rank);
        let mut cells = self.cells.iter().enumerate();
        let open = cells.any(|(at, cell)| cell.class == class && !self.barred(at));
        open && ground.count(pool, rank) < self.host_max && self.has_room(ground, pool, rank)
    }

    /// The replica on this host counts for no score until `best` has found. The host itself with its cell
    /// and without that replica, when it may have the next one too.
    pub(super) fn without(
        &mut self,
        ground: &Ground<'_>,
        pool: &Pool,
        id: &HostId,
    ) -> Option<(usize, Key)> {
        let class = ground.cluster.hosts.get(id)?.class;
        let labels = &ground.cluster.classes.get(class)?.labels;
        for group in &mut self.groups {
            group.goes = group.count > 0 && labels.get(&group.label) == Some(&group.value);
        }
        let rank = pool.usable(id).filter(|_| self.per_host)?;
        let count = ground.count(pool, rank).checked_sub(1)?;
        if !self.admits(ground, pool, rank) {
            return None;
        }
        let alike = |(_, cell): &(usize, &Cell)| cell.class == class && !cell.cached;
        let mut cells = self.cells.iter().enumerate().filter(alike);
        // Where hosts of a class differ by their names, all have been taken out of its order.
        let alone = cells.clone().nth(1).is_none();
        let holds = |cell: &Cell| cell.seen.iter().any(|key| key.2 == rank);
        let (at, _) = cells.find(|(_, cell)| alone || holds(cell))?;
        Some((at, (count, self.load_key(pool, rank), rank)))
    }

    fn named(&self, pool: &Pool, rank: Rank) -> bool {
        self.by_name.is_empty()
            || self
                .by_name
                .iter()
                .all(|constraint| place::name_passes(constraint, pool.room(rank).name.as_str()))
    }
}
