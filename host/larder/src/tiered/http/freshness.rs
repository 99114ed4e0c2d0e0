//! What the headers of a response say of how long it may be kept: RFC 9111, and RFC 5861 for stale copies.
//!
//! The parser is here because none that is kept up knows all of these directives with one answer for what is malformed. That
//! answer is the RFC's: what cannot be read counts as stale, and directives that nobody knows are passed over.

use std::time::{Duration, SystemTime};

use reqwest::header::{AGE, CACHE_CONTROL, DATE, EXPIRES, HeaderMap, HeaderName, VARY};

/// No response is fresh for longer: RFC 9111, 1.2.2.
const MOST: u64 = 1 << 31;

/// What a response allows. `None`: it does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Freshness {
    /// From now on; zero: it must not be used again without asking.
    pub(super) fresh: Option<Duration>,
    pub(super) stale: Option<Duration>,
    pub(super) rescue: Option<Duration>,
}

impl Freshness {
    const NONE: Freshness =
        Freshness { fresh: Some(Duration::ZERO), stale: Some(Duration::ZERO), rescue: Some(Duration::ZERO) };

    /// Of a response that has just come. `shared`: what is kept is for more than one user.
    pub(super) fn of(headers: &HeaderMap, now: SystemTime, shared: bool) -> Freshness {
        let directives: Vec<_> = headers
            .get_all(CACHE_CONTROL)
            .iter()
            .flat_map(|line| split(&String::from_utf8_lossy(line.as_bytes())))
            .collect();
        let says = |name: &str| directives.iter().any(|(known, _)| known == name);
        // Of two that contradict each other the stricter one counts; what is no number is stale.
        let seconds = |name: &str| {
            let of_name = directives.iter().filter(|(known, _)| known == name);
            of_name.map(|(_, value)| Duration::from_secs(delta_seconds(value.as_deref()))).min()
        };
        let any_vary = headers.get_all(VARY).iter().any(|line| line.as_bytes().contains(&b'*'));
        if says("no-store") || says("no-cache") || any_vary || shared && says("private") {
            return Freshness::NONE;
        }
        let date = header_date(headers, DATE);
        let expires = headers.contains_key(EXPIRES).then(|| match header_date(headers, EXPIRES) {
            Some(expires) => expires.duration_since(date.unwrap_or(now)).unwrap_or_default(),
            None => Duration::ZERO,
        });
        let s_maxage = if shared { seconds("s-maxage") } else { None };
        let lifetime = s_maxage.or(seconds("max-age")).or(expires);
        let said = headers.get(AGE).map(|age| Duration::from_secs(delta_seconds(age.to_str().ok())));
        // In whole seconds, as dates are.
        let apparent = date.and_then(|date| now.duration_since(date).ok()).map_or(0, |age| age.as_secs());
        let age = said.unwrap_or_default().max(Duration::from_secs(apparent));
        let fresh = lifetime.map(|lifetime| lifetime.saturating_sub(age));
        // Windows count from the end of freshness, which may be over.
        let over = lifetime.map_or(Duration::ZERO, |lifetime| age.saturating_sub(lifetime));
        let window = |name: &str| seconds(name).map(|window| window.saturating_sub(over));
        let strict = says("must-revalidate") || shared && says("proxy-revalidate");
        let (stale, rescue) = if strict {
            (Some(Duration::ZERO), Some(Duration::ZERO))
        } else if s_maxage.is_some() {
            // Which means `proxy-revalidate`, too; but a window that is named beside it is meant.
            (
                window("stale-while-revalidate").or(Some(Duration::ZERO)),
                window("stale-if-error").or(Some(Duration::ZERO)),
            )
        } else {
            (window("stale-while-revalidate"), window("stale-if-error"))
        };
        Freshness { fresh, stale, rescue }
    }
}

/// How long a server that turns requests away asks to be left alone: `Retry-After`, in seconds or as a date.
pub(super) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(reqwest::header::RETRY_AFTER)?.to_str().ok()?.trim();
    match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => httpdate::parse_http_date(text).ok()?.duration_since(now).ok(),
    }
}

fn header_date(headers: &HeaderMap, name: HeaderName) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get(name)?.to_str().ok()?).ok()
}

/// A number of seconds; what is none is 0, what is too large is a very long time.
fn delta_seconds(text: Option<&str>) -> u64 {
    let text = text.unwrap_or_default().trim();
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return 0;
    }
    text.parse().unwrap_or(MOST).min(MOST)
}

/// Directives and their arguments: `name`, `name=token` and `name="quoted \" text"`, with commas between.
fn split(line: &str) -> Vec<(String, Option<String>)> {
    let mut directives = Vec::new();
    let mut rest = line.chars().peekable();
    loop {
        let mut name = String::new();
        while let Some(c) = rest.next_if(|c| !matches!(c, ',' | '=')) {
            name.push(c.to_ascii_lowercase());
        }
        let argument = rest.next_if_eq(&'=').map(|_| {
            let mut argument = String::new();
            let mut quoted = false;
            while let Some(c) = rest.next_if(|c| quoted || *c != ',') {
                match c {
                    '"' => quoted = !quoted,
                    '\\' if quoted => argument.extend(rest.next()),
                    c => argument.push(c),
                }
            }
            argument
        });
        if !name.trim().is_empty() {
            directives.push((name.trim().into(), argument));
        }
        // The comma.
        if rest.next().is_none() {
            return directives;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sun, 06 Nov 1994 08:49:37 GMT.
    const NOW: u64 = 784_111_777;

    fn of(headers: &[(&str, &str)], shared: bool) -> (Option<u64>, Option<u64>, Option<u64>) {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(NOW);
        let Freshness { fresh, stale, rescue } = Freshness::of(&map, now, shared);
        let seconds = |time: Option<Duration>| time.map(|time| time.as_secs());
        (seconds(fresh), seconds(stale), seconds(rescue))
    }

    #[test]
    fn cache_control_as_rfc_9111_has_it() {
        let never = (Some(0), Some(0), Some(0));
        for (line, expected) in [
            ("", (None, None, None)),
            ("max-age=60", (Some(60), None, None)),
            ("Max-Age=\"60\" , public", (Some(60), None, None)),
            ("max-age=60, s-maxage=10", (Some(10), Some(0), Some(0))),
            ("s-maxage=10, stale-if-error=5", (Some(10), Some(0), Some(5))),
            ("max-age=60, stale-while-revalidate=30, stale-if-error=600", (Some(60), Some(30), Some(600))),
            ("max-age=60, must-revalidate, stale-if-error=600", (Some(60), Some(0), Some(0))),
            ("max-age=60, proxy-revalidate", (Some(60), Some(0), Some(0))),
            ("no-store", never),
            ("max-age=60, no-cache", never),
            ("no-cache=\"set-cookie, other\", max-age=60", never),
            ("private, max-age=60", never),
            // What is malformed is stale; of two the stricter counts; too large is very long.
            ("max-age=sixty", (Some(0), None, None)),
            ("max-age=-1", (Some(0), None, None)),
            ("max-age", (Some(0), None, None)),
            ("max-age=60, max-age=30", (Some(30), None, None)),
            ("max-age=99999999999999999999", (Some(MOST), None, None)),
            // Nobody knows these; a comma in quotes ends nothing.
            ("community=\"UCI, max-age=1\", , max-age=7,", (Some(7), None, None)),
            ("x=\"a\\\"b, no-store\", max-age=7", (Some(7), None, None)),
            ("unfinished=\"no-store, max-age=7", (None, None, None)),
        ] {
            assert_eq!(of(&[("cache-control", line)], true), expected, "{line}");
        }
        assert_eq!(of(&[("cache-control", "no-store"), ("cache-control", "max-age=9")], true), never);
        assert_eq!(of(&[("cache-control", "max-age=9"), ("vary", "*")], true), never);
        assert_eq!(of(&[("cache-control", "max-age=9"), ("vary", "accept")], true), (Some(9), None, None));
        // For one user alone.
        assert_eq!(of(&[("cache-control", "private, max-age=60, s-maxage=10")], false), (Some(60), None, None));
        assert_eq!(of(&[("cache-control", "max-age=60, proxy-revalidate")], false), (Some(60), None, None));
    }

    #[test]
    fn age_and_dates() {
        let date = ("date", "Sun, 06 Nov 1994 08:49:37 GMT");
        for (headers, fresh) in [
            (&[("cache-control", "max-age=60"), ("age", "20")][..], Some(40)),
            (&[("cache-control", "max-age=60"), ("age", "90")], Some(0)),
            (&[("cache-control", "max-age=60"), ("age", "soon")], Some(60)),
            (&[date, ("expires", "Sun, 06 Nov 1994 08:50:37 GMT")], Some(60)),
            (&[("expires", "Sun, 06 Nov 1994 08:50:37 GMT")], Some(60)),
            (&[date, ("expires", "Sun, 06 Nov 1994 08:00:00 GMT")], Some(0)),
            (&[date, ("expires", "0")], Some(0)),
            (&[date, ("expires", "0"), ("cache-control", "max-age=5")], Some(5)),
            // It was made ten seconds ago, whatever its age is said to be.
            (&[("date", "Sun, 06 Nov 1994 08:49:27 GMT"), ("cache-control", "max-age=60"), ("age", "3")], Some(50)),
            // A clock that is ahead of ours.
            (&[("date", "Sun, 06 Nov 1994 09:49:27 GMT"), ("cache-control", "max-age=60")], Some(60)),
        ] {
            assert_eq!(of(headers, true).0, fresh, "{headers:?}");
        }
        let late = [("cache-control", "max-age=60, stale-while-revalidate=100, stale-if-error=10"), ("age", "80")];
        assert_eq!(of(&late, true), (Some(0), Some(80), Some(0)), "windows count from the end of freshness");
    }

    #[test]
    fn when_to_come_again() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(NOW);
        let after = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("retry-after", value.parse().unwrap());
            retry_after(&headers, now).map(|time| time.as_secs())
        };
        assert_eq!(after("120"), Some(120));
        assert_eq!(after("Sun, 06 Nov 1994 08:50:37 GMT"), Some(60));
        assert_eq!(after("Sun, 06 Nov 1994 08:00:00 GMT"), None);
        assert_eq!(after("soon"), None);
    }
}
