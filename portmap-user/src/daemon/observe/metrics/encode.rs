//! The two text formats of metrics, and the choice between them.

use std::cmp::Reverse;

/// A text format of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::daemon) enum Format {
    /// `OpenMetrics` 1.0.0.
    OpenMetrics,
    /// Prometheus' own format, version 0.0.4, which every tool reads.
    Classic,
}

impl Format {
    /// The format for a client with these `Accept` headers: the one with the highest weight, and of several the
    /// first. As in Prometheus' client libraries it is the classic one if the client accepts neither by name, or
    /// both only by a wildcard, so that a browser displays it.
    pub(in crate::daemon) fn negotiate<'a>(accept: impl IntoIterator<Item = &'a str>) -> Self {
        let ranges = accept.into_iter().flat_map(|header| header.split(','));
        let acceptable = ranges.filter_map(|range| {
            let (format, weight) = accepted(range)?;
            (weight > 0).then_some((format, weight))
        });
        acceptable.min_by_key(|(_, weight)| Reverse(*weight)).map_or(Self::Classic, |(format, _)| format)
    }

    /// The media type of a response.
    pub(in crate::daemon) const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Classic => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// Converts metrics in `OpenMetrics` to this format.
    pub(super) fn convert(self, open_metrics: String) -> String {
        match self {
            Self::OpenMetrics => open_metrics,
            Self::Classic => to_classic(&open_metrics),
        }
    }
}

/// The format that a media range names, with its weight in thousandths.
fn accepted(range: &str) -> Option<(Format, u16)> {
    let mut parts = range.split(';').map(str::trim);
    let media_type = parts.next()?;
    let (mut version, mut weight) = (None, 1000);
    for (name, value) in parts.filter_map(|parameter| parameter.split_once('=')) {
        let value = value.trim().trim_matches('"');
        if name.trim().eq_ignore_ascii_case("q") {
            weight = thousandths(value)?;
        } else if name.trim().eq_ignore_ascii_case("version") {
            version = Some(value);
        }
    }
    let is = |name: &str| media_type.eq_ignore_ascii_case(name);
    let (format, own_version) = if is("application/openmetrics-text") {
        (Format::OpenMetrics, "1.0.0")
    } else if is("text/plain") {
        (Format::Classic, "0.0.4")
    } else if is("text/*") {
        return Some((Format::Classic, weight));
    } else {
        return None;
    };
    version.is_none_or(|version| version == own_version).then_some((format, weight))
}

/// A weight such as `0.75` in thousandths; `None` if it is invalid.
fn thousandths(weight: &str) -> Option<u16> {
    let (whole, fraction) = weight.split_once('.').unwrap_or((weight, ""));
    let has_digits_only = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.len() != 1 || fraction.len() > 3 || !has_digits_only(whole) || !has_digits_only(fraction) {
        return None;
    }
    let weight: u16 = format!("{whole}{fraction:0<3}").parse().ok()?;
    (weight <= 1000).then_some(weight)
}

/// Rewrites the comments: the classic format names a counter with its suffix, knows neither the type `info` nor
/// units, and has no end marker. Samples are the same in both.
fn to_classic(open_metrics: &str) -> String {
    let mut classic = String::with_capacity(open_metrics.len());
    let mut put = |parts: &[&str]| {
        classic.extend(parts.iter().copied());
        classic.push('\n');
    };
    let mut help = None;
    for line in open_metrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            // The type that follows decides on the name.
            help = rest.split_once(' ');
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total", kind),
                "info" => ("_info", "gauge"),
                _ => ("", kind),
            };
            if let Some((_, help)) = help.take() {
                put(&["# HELP ", name, suffix, " ", help]);
            }
            put(&["# TYPE ", name, suffix, " ", kind]);
        } else if !line.starts_with('#') {
            put(&[line]);
        }
    }
    classic
}

#[cfg(test)]
mod tests {
    use super::{Format, to_classic};

    #[test]
    fn metrics_format_is_the_preferred_one() {
        use Format::{Classic, OpenMetrics};
        const OPEN: &str = "application/openmetrics-text";
        let prometheus = format!(
            "{OPEN};version=1.0.0,{OPEN};version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
        );
        for (accept, format) in [
            (vec![prometheus.as_str()], OpenMetrics),
            (vec![], Classic),
            (vec![""], Classic),
            (vec!["*/*"], Classic),
            (vec!["text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"], Classic),
            (vec![OPEN], OpenMetrics),
            (vec!["application/openmetrics-text; version=\"1.0.0\"; charset=utf-8"], OpenMetrics),
            (vec!["Application/OpenMetrics-Text;Q=0.1"], OpenMetrics),
            (vec!["application/openmetrics-text;version=0.0.1"], Classic),
            (vec!["application/openmetrics-text;version=2.0.0,text/plain;q=0.1"], Classic),
            (vec!["text/plain;q=0.5,application/openmetrics-text;q=0.6"], OpenMetrics),
            (vec!["application/openmetrics-text;q=0.5,text/plain;q=0.501"], Classic),
            (vec!["text/plain", OPEN], Classic),
            (vec![OPEN, "text/plain"], OpenMetrics),
            (vec!["application/openmetrics-text;q=0"], Classic),
            (vec!["application/openmetrics-text;q=0.2,text/*;q=0.1"], OpenMetrics),
            (vec!["application/openmetrics-text;q=much,text/plain"], Classic),
            (vec!["application/openmetrics-text;q=1.001,text/plain;q=0.1"], Classic),
            (vec![",;,=;q,"], Classic),
        ] {
            assert_eq!(Format::negotiate(accept.iter().copied()), format, "{accept:?}");
        }
    }

    #[test]
    fn metrics_classic_format_names_types_as_prometheus_does() {
        let open = "# HELP a_packets Packets.\n# TYPE a_packets counter\na_packets_total{x=\"# y\"} 1\n\
                    # HELP b About b.\n# TYPE b info\nb_info{v=\"1\"} 1\n\
                    # HELP c_seconds Time.\n# TYPE c_seconds gauge\n# UNIT c_seconds seconds\nc_seconds 2.5\n# EOF\n";
        let classic = "# HELP a_packets_total Packets.\n# TYPE a_packets_total counter\n\
                       a_packets_total{x=\"# y\"} 1\n\
                       # HELP b_info About b.\n# TYPE b_info gauge\nb_info{v=\"1\"} 1\n\
                       # HELP c_seconds Time.\n# TYPE c_seconds gauge\nc_seconds 2.5\n";
        assert_eq!(to_classic(open), classic);
    }
}
