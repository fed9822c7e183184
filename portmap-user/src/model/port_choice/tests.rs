//! Properties of the choice, with random free ports, releases and requests, against a bitmap.

use std::num::NonZeroU16;

use super::*;

const NOW: Duration = Duration::from_secs(1000);

/// A xorshift generator.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }

    fn port(&mut self) -> u16 {
        u16::try_from(1 + self.below(96)).expect("a port")
    }

    fn ranges(&mut self, most: u64) -> PortSet {
        let ranges = (0..self.below(most + 1)).filter_map(|_| {
            let first = self.port();
            PortRange::new(first, first + u16::try_from(self.below(12)).expect("small"))
        });
        ranges.collect::<Vec<_>>().into()
    }

    fn request(&mut self) -> AutomaticRange {
        automatic(u16::try_from(1 + self.below(9)).expect("small"), self.below(3) == 0)
    }
}

/// A time before [`NOW`].
fn ago(seconds: u64) -> Duration {
    NOW.saturating_sub(Duration::from_secs(seconds))
}

fn automatic(count: u16, is_aligned: bool) -> AutomaticRange {
    AutomaticRange { count: NonZeroU16::new(count).expect("not 0"), is_aligned }
}

fn set(text: &str) -> PortSet {
    text.parse().expect("ports")
}

fn range(first: u16, last: u16) -> PortRange {
    PortRange::new(first, last).expect("a range")
}

/// Every place at which a request fits, by trying each port.
fn places(request: AutomaticRange, ports: &PortSet) -> Vec<PortRange> {
    let all = (1..=u32::from(u16::MAX)).take(120).filter_map(|first| range_from(first, request));
    all.filter(|place| u32::from(place.first()).is_multiple_of(request.alignment()))
        .filter(|place| PortSet::from(*place).difference(ports).is_empty())
        .collect()
}

fn released(ages: &[(u64, &str)]) -> Released {
    let mut released = Released::default();
    for (age, ports) in ages {
        released.0.push_back((ago(*age), set(ports)));
    }
    released
}

fn choose(free: &str, own: &[PortRange], released: &Released, requests: &[AutomaticRange]) -> Vec<PortRange> {
    Supply { free: &set(free), own, released, now: NOW }.choose(requests).expect("they fit")
}

#[test]
fn port_choice_is_valid_and_complete() {
    let mut random = Random(7);
    let mut refused = 0;
    for round in 0..20_000 {
        let mut log = Released::default();
        for age in (0..random.below(5)).rev() {
            log.0.push_back((ago(20 * age), random.ranges(3)));
        }
        let own: Vec<PortRange> = random.ranges(2).ranges().to_vec();
        let free = random.ranges(6).difference(&own.clone().into());
        let requests: Vec<AutomaticRange> = (0..=random.below(4)).map(|_| random.request()).collect();
        let supply = Supply { free: &free, own: &own, released: &log, now: NOW };
        let all = free.union(&own.clone().into());
        let seen = format!("round {round}: {requests:?} of {all}, own {own:?}");
        match supply.choose(&requests) {
            Ok(chosen) => {
                assert_eq!(chosen.len(), requests.len(), "{seen}");
                let mut left = all;
                for (request, chosen) in requests.iter().zip(&chosen) {
                    assert!(places(*request, &left).contains(chosen), "{seen}: {chosen} in {left}");
                    left = left.difference(&(*chosen).into());
                }
            }
            Err(shortage) => {
                refused += 1;
                assert!(requests.contains(&shortage.wanted), "{seen}");
                let same = requests.iter().all(|request| *request == requests[0] && !request.is_aligned);
                if requests.len() == 1 {
                    assert_eq!(places(requests[0], &all), [], "{seen}");
                    assert_eq!(shortage.longest, all.longest_run(), "{seen}");
                } else if same {
                    let count = usize::from(requests[0].count.get());
                    let fit: usize = all.ranges().iter().map(|run| run.count() / count).sum();
                    assert!(fit < requests.len(), "{seen}");
                }
            }
        }
    }
    assert!((100..19_000).contains(&refused), "{refused} of the requests were refused");
}

#[test]
fn port_choice_avoids_ports_released_lately() {
    let mut random = Random(11);
    for round in 0..5_000 {
        let (old, new) = (random.ranges(3), random.ranges(3));
        let mut log = Released::default();
        log.note(old.clone(), ago(30));
        log.note(new.clone(), NOW);
        let (free, request) = (random.ranges(8), random.request());
        let Ok(chosen) = (Supply { free: &free, own: &[], released: &log, now: NOW }).choose(&[request])
        else {
            continue;
        };
        let chosen = chosen[0];
        let without_both = free.difference(&old).difference(&new);
        let expected = [without_both, free.difference(&new), free];
        let best = expected.iter().find(|ports| !places(request, ports).is_empty()).expect("it fits");
        let shortest =
            best.ranges().iter().filter(|run| first_fit(request, **run).is_some()).map(|run| run.count());
        let run = best.ranges().iter().find(|run| run.contains(chosen.first())).expect("the run");
        assert_eq!(Some(run.count()), shortest.min(), "round {round}: {chosen} for {request} in {best}");
        assert!(run.contains(chosen.last()), "round {round}: {chosen} for {request} in {best}");
    }
}

#[test]
fn port_choice_is_the_best_fit() {
    let none = Released::default();
    for (free, request, expected) in [
        ("1000-1099,2000-2009", automatic(10, false), range(2000, 2009)),
        ("1000-1099,2000-2009", automatic(11, false), range(1000, 1010)),
        ("1001-1010,2000", automatic(1, false), range(2000, 2000)),
        ("1001-1010", automatic(4, true), range(1004, 1007)),
        ("1001-1006,2000-2030", automatic(3, true), range(1004, 1006)),
        ("65532-65535", automatic(4, true), range(65532, 65535)),
        ("1-65535", automatic(65535, false), range(1, 65535)),
    ] {
        assert_eq!(choose(free, &[], &none, &[request]), [expected], "{request} in {free}");
    }
    // The larger one is placed first, whatever the order of the request.
    let both = choose("1000-1003,2000-2004", &[], &none, &[automatic(2, false), automatic(5, false)]);
    assert_eq!(both, [range(1000, 1001), range(2000, 2004)]);
}

#[test]
fn port_choice_keeps_what_the_container_has() {
    let none = Released::default();
    let own = [range(1010, 1019), range(1030, 1030)];
    for (requests, expected) in [
        (vec![automatic(10, false), automatic(1, false)], vec![range(1010, 1019), range(1030, 1030)]),
        (vec![automatic(1, false)], vec![range(1030, 1030)]),
        (vec![automatic(4, false)], vec![range(1010, 1013)]),
        (vec![automatic(12, false)], vec![range(1010, 1021)]),
        // There is no port above 1030, so the range also grows downwards.
        (vec![automatic(22, false)], vec![range(1009, 1030)]),
        (vec![automatic(8, true)], vec![range(1000, 1007)]),
        (vec![automatic(10, false), automatic(10, false)], vec![range(1010, 1019), range(1021, 1030)]),
    ] {
        assert_eq!(choose("1000-1009,1020-1029", &own, &none, &requests), expected, "{requests:?}");
    }
    // Ranges that touch are kept as they are.
    let touching = [range(1000, 1001), range(1002, 1004)];
    let swapped = [automatic(3, false), automatic(2, false)];
    assert_eq!(choose("1005-1009", &touching, &none, &swapped), [range(1002, 1004), range(1000, 1001)]);
    // A preference never makes a request fail.
    let three = [automatic(3, false), automatic(3, false), automatic(3, false)];
    assert_eq!(choose("1000-1001,1006-1008", &[range(1002, 1005)], &none, &three).len(), 3);
}

#[test]
fn port_choice_forgets_releases_after_a_minute() {
    let mut log = released(&[(61, "1000-1001"), (59, "1002")]);
    assert_eq!(choose("1000-1003", &[], &log, &[automatic(1, false)]), [range(1003, 1003)]);
    assert_eq!(choose("1000-1002", &[], &log, &[automatic(2, false)]), [range(1000, 1001)]);
    log.note(PortSet::default(), NOW);
    assert_eq!(log.0.len(), 1, "old releases are removed");
    let recent = released(&[(40, "1000-1001"), (20, "1002-1003"), (1, "1004-1005")]);
    assert_eq!(choose("1000-1005", &[], &recent, &[automatic(2, false)]), [range(1000, 1001)]);
    assert_eq!(choose("1002-1005", &[], &recent, &[automatic(2, false)]), [range(1002, 1003)]);
    // Without the released ports, the first range would be in the way of the second.
    let recent = released(&[(1, "1000-1002,1007-1009")]);
    let two = [automatic(4, false), automatic(4, false)];
    assert_eq!(choose("1000-1009", &[], &recent, &two), [range(1000, 1003), range(1004, 1007)]);
}
