//! Circles in a graph.

use std::collections::{BTreeMap, BTreeSet};

/// What each node points to.
pub(super) type Graph = BTreeMap<String, BTreeSet<String>>;

/// The graph of some edges.
pub(super) fn graph<'a>(edges: impl IntoIterator<Item = (&'a str, &'a str)>) -> Graph {
    let mut graph = Graph::new();
    for (from, to) in edges {
        graph.entry(from.to_owned()).or_default().insert(to.to_owned());
        graph.entry(to.to_owned()).or_default();
    }
    graph
}

/// Circles that together contain every node in a circle. Each is a shortest one through its first node.
pub(super) fn circles(graph: &Graph) -> Vec<Vec<String>> {
    let mut seen = BTreeSet::new();
    let mut circles = Vec::new();
    for node in graph.keys() {
        if !seen.contains(node)
            && let Some(circle) = shortest(graph, node)
        {
            seen.extend(circle.iter().cloned());
            circles.push(circle);
        }
    }
    circles
}

/// The shortest way from a node back to itself.
fn shortest(graph: &Graph, start: &str) -> Option<Vec<String>> {
    let mut ways = vec![vec![start.to_owned()]];
    let mut seen = BTreeSet::new();
    while !ways.is_empty() {
        let mut longer = Vec::new();
        for way in ways {
            let last = way.last().map_or("", String::as_str);
            for next in graph.get(last).into_iter().flatten() {
                if next == start {
                    return Some(way);
                }
                if seen.insert(next.clone()) {
                    longer.push(way.iter().chain([next]).cloned().collect());
                }
            }
        }
        ways = longer;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn circles_are_as_short_as_possible_and_contain_every_node() {
        let edges = [("a", "b"), ("b", "a"), ("b", "c"), ("c", "b"), ("c", "d"), ("e", "f"), ("f", "e")];
        assert_eq!(circles(&graph(edges)), [["a", "b"], ["c", "b"], ["e", "f"]]);
    }

    #[test]
    fn circles_are_none_in_a_graph_that_only_goes_down() {
        assert_eq!(circles(&graph([("a", "b"), ("a", "c"), ("b", "c")])), [[""; 0]; 0]);
    }
}
