//! Transitive reduction of a graph: its edges without those that a longer path implies.

use std::collections::BTreeSet;

use super::{circles, groups::Groups};

/// Returns the groups with the imports that no path over other groups implies. In a graph with circles every
/// import stays, because there the result would depend on the order.
pub(super) fn reduced(groups: &Groups) -> Groups {
    let mut edges = groups.edges.clone();
    if groups.circles().is_empty() {
        let graph = circles::graph(edges.keys().map(|(from, to)| (&**from, &**to)));
        edges.retain(|(from, to), _| {
            let others = graph[from].iter().filter(|other| *other != to);
            !others.into_iter().any(|other| is_reachable(&graph, other, to))
        });
    }
    Groups { members: groups.members.clone(), edges }
}

/// Whether a path leads from one node to another one.
fn is_reachable(graph: &circles::Graph, from: &str, to: &str) -> bool {
    let (mut seen, mut pending) = (BTreeSet::new(), vec![from]);
    while let Some(node) = pending.pop() {
        if node == to {
            return true;
        }
        if seen.insert(node) {
            pending.extend(graph[node].iter().map(String::as_str));
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reduced_edges(edges: &[(&str, &str)]) -> Vec<String> {
        let edges = edges.iter().map(|(from, to)| (((*from).to_owned(), (*to).to_owned()), 1)).collect();
        let groups = reduced(&Groups { members: std::collections::BTreeMap::new(), edges });
        groups.edges.into_keys().map(|(from, to)| format!("{from}{to}")).collect()
    }

    #[test]
    fn reduction_removes_imports_that_a_path_implies() {
        let edges = [("a", "b"), ("a", "c"), ("a", "d"), ("b", "c"), ("c", "d"), ("e", "d")];
        assert_eq!(reduced_edges(&edges), ["ab", "bc", "cd", "ed"]);
    }

    #[test]
    fn reduction_keeps_every_import_of_a_graph_with_a_circle() {
        assert_eq!(
            reduced_edges(&[("a", "b"), ("b", "a"), ("a", "c"), ("b", "c")]),
            ["ab", "ac", "ba", "bc"]
        );
    }
}
