//! Who holds how much of one workload.
//!
//! Owns one flat list, and how a host is found in it. What is counted there is `holdings`'.

/// How many placements of one workload each host holds, by the number that the state has given the
/// host, in order of the numbers.
///
/// One flat list for each workload: placing looks at many hosts that hold the workload already, and
/// a walk down two trees of names for each would be most of its cost. It is as long as there are
/// hosts, at most.
#[derive(Debug, Clone, Default)]
pub(crate) struct Holders(Vec<(u32, u32)>);

impl Holders {
    fn at(&self, host: u32) -> Result<usize, usize> {
        self.0.binary_search_by_key(&host, |(number, _)| *number)
    }

    pub(crate) fn add(&mut self, host: u32, many: u32) {
        match self.at(host) {
            Ok(at) => self.0[at].1 += many,
            Err(at) => self.0.insert(at, (host, many)),
        }
    }

    pub(crate) fn remove(&mut self, host: u32, many: u32) {
        if let Ok(at) = self.at(host) {
            let count = &mut self.0[at].1;
            *count = count.saturating_sub(many);
            if *count == 0 {
                self.0.remove(at);
            }
        }
    }

    pub(crate) fn get(&self, host: u32) -> u32 {
        self.at(host).map_or(0, |at| self.0[at].1)
    }

    /// The same for one of many hosts that are gone through: looked for from where the one before was found,
    /// which is nearby where hosts come in the order of their numbers.
    pub(crate) fn get_near(&self, host: u32, near: &mut usize) -> u32 {
        // One after the other, as most are.
        for at in [*near, *near + 1] {
            if let Some((number, count)) = self.0.get(at)
                && *number == host
            {
                *near = at;
                return *count;
            }
        }
        let before = |at: usize| self.0[at].0 < host;
        let (mut low, mut high, mut step) = (*near, *near, 1);
        while high < self.0.len() && before(high) {
            (low, high) = (high + 1, high + step);
            step *= 2;
        }
        while low > 0 && !before(low - 1) {
            (low, high) = (low.saturating_sub(step), low - 1);
            step *= 2;
        }
        let between = &self.0[low..high.min(self.0.len())];
        *near = low + between.partition_point(|(number, _)| *number < host);
        let found = { self.0.get(*near) }.filter(|(number, _)| *number == host);
        found.map_or(0, |(_, count)| *count)
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_is_found_from_wherever_the_last_one_was() {
        let mut holders = Holders::default();
        for host in [2, 3, 5, 8, 13, 21, 34, 55] {
            holders.add(host, host * 10);
        }
        for first in 0..=60 {
            for then in 0..=60 {
                let mut near = 0;
                let found = [first, then].map(|host| holders.get_near(host, &mut near));
                assert_eq!(found, [first, then].map(|host| holders.get(host)));
            }
        }
    }
}
