//! Layers of a graph, from top to bottom.

use std::collections::BTreeMap;

use super::groups::Groups;

/// The layer of each group: below all the groups that import it. Groups in a circle stay where the search for
/// a deeper layer ends.
pub(super) fn layers(groups: &Groups) -> Vec<Vec<String>> {
    let mut layer: BTreeMap<&str, usize> = groups.members.keys().map(|name| (&**name, 0)).collect();
    let most = groups.members.len();
    for _ in 0..most {
        for (from, to) in groups.edges.keys() {
            let below = (layer[&**from] + 1).min(most - 1);
            if layer[&**to] < below {
                layer.insert(to, below);
            }
        }
    }
    let mut layers: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for (name, place) in layer {
        layers.entry(place).or_default().push(name.to_owned());
    }
    layers.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups(edges: &[(&str, &str)]) -> Groups {
        let names = edges.iter().flat_map(|(from, to)| [*from, *to]);
        Groups {
            members: names.map(|name| (name.to_owned(), vec![format!("{name}.rs")])).collect(),
            edges: edges.iter().map(|(from, to)| (((*from).to_owned(), (*to).to_owned()), 1)).collect(),
        }
    }

    #[test]
    fn layers_place_each_group_below_all_that_import_it() {
        let groups = groups(&[
            ("cli", "api"),
            ("cli", "base"),
            ("api", "model"),
            ("daemon", "model"),
            ("model", "base"),
        ]);
        assert_eq!(layers(&groups), [vec!["cli", "daemon"], vec!["api"], vec!["model"], vec!["base"]]);
    }

    #[test]
    fn layers_end_where_groups_are_in_a_circle() {
        assert_eq!(layers(&groups(&[("a", "b"), ("b", "a")])).concat().len(), 2);
    }
}
