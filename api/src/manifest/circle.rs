//! Workloads that wait for one another in a circle.

use std::collections::BTreeSet;

use crate::ids::Name;

/// The first circle that is met from these workloads on: the names in it, each waiting for the next, and
/// what to say of it. One that waits for itself is another mistake, and told elsewhere. Linear in
/// workloads and edges.
pub fn circle<'a>(
    from: impl IntoIterator<Item = &'a Name>,
    waits_for: impl Fn(&Name) -> Vec<Name>,
) -> Option<(Vec<Name>, String)> {
    let mut through: BTreeSet<Name> = BTreeSet::new();
    for start in from {
        // The way here, and what is still to be tried from each.
        let mut way = vec![(start.clone(), waits_for(start))];
        while let Some((name, rest)) = way.last_mut() {
            let Some(next) = rest.pop() else {
                through.insert(name.clone());
                way.pop();
                continue;
            };
            if next == *name || through.contains(&next) {
                continue;
            }
            if let Some(begins) = way.iter().position(|(name, _)| *name == next) {
                let names: Vec<Name> = way.drain(begins..).map(|(name, _)| name).collect();
                let said = say(&names);
                return Some((names, said));
            }
            let edges = waits_for(&next);
            way.push((next, edges));
        }
    }
    None
}

fn say(names: &[Name]) -> String {
    let next = names.iter().cycle().skip(1);
    let steps = { names.iter() }.zip(next);
    let steps: Vec<String> = steps
        .map(|(name, next)| format!("{name} waits for {next}"))
        .collect();
    format!(
        "goes in a circle: {}; no one of them could be deployed first",
        steps.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn named(number: u8) -> Name {
        format!("w{number}").parse().unwrap()
    }

    fn of(edges: &[(u8, u8)]) -> Option<(Vec<Name>, String)> {
        let mut graph: BTreeMap<Name, Vec<Name>> = BTreeMap::new();
        for (from, to) in edges {
            graph.entry(named(*from)).or_default().push(named(*to));
        }
        let names: Vec<Name> = graph.keys().cloned().collect();
        circle(&names, |name| graph.get(name).cloned().unwrap_or_default())
    }

    #[test]
    fn a_circle_is_told_step_by_step() {
        assert_eq!(of(&[(1, 2), (2, 3), (1, 3), (1, 1)]), None);
        let (names, said) = of(&[(0, 1), (1, 2), (2, 1)]).unwrap();
        assert_eq!(names, [named(1), named(2)]);
        insta::assert_snapshot!(
            said,
            @"goes in a circle: w1 waits for w2, w2 waits for w1; no one of them could be deployed first"
        );
    }

    proptest! {
        /// There is one exactly when taking away what waits for nothing leaves something over.
        #[test]
        fn a_circle_is_found_when_there_is_one(
            edges in prop::collection::vec((0u8..8, 0u8..8), 0..14)
        ) {
            let mut left: Vec<(u8, u8)> = edges.clone();
            left.retain(|(from, to)| from != to);
            loop {
                let waits: BTreeSet<u8> = left.iter().map(|(from, _)| *from).collect();
                let before = left.len();
                left.retain(|(_, to)| waits.contains(to));
                if left.len() == before {
                    break;
                }
            }
            let found = of(&edges);
            prop_assert_eq!(found.is_some(), !left.is_empty());
            if let Some((names, _)) = found {
                let next = names.iter().cycle().skip(1);
                for (one, next) in names.iter().zip(next) {
                    prop_assert!(edges.iter().any(|(a, b)| named(*a) == *one && named(*b) == *next));
                }
            }
        }
    }
}
