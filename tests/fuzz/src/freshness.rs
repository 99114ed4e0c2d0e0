//! Any headers of a response say how long it may be kept, or that they do not say.

use std::time::{Duration, SystemTime};

use reqwest::header::{CACHE_CONTROL, HeaderMap, HeaderName, HeaderValue};

use crate::tiered::http::{freshness, retry_after};

/// Sun, 06 Nov 1994 08:49:37 GMT.
const NOW: Duration = Duration::from_secs(784_111_777);

/// One response: a header a line.
pub fn check(data: &[u8]) {
    let now = SystemTime::UNIX_EPOCH + NOW;
    let mut headers = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n').take(100) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(&line[colon + 1..]));
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    let private = freshness(&headers, now, false);
    let shared = freshness(&headers, now, true);
    retry_after(&headers, now);
    let zero = [Some(Duration::ZERO); 3];
    if private == zero {
        assert_eq!(shared[0], private[0], "what nobody may keep is not kept for all");
    }
    // Whatever else is said, and however it was quoted, one line of its own can take everything back, or make it older.
    let mut older = headers.clone();
    older.append(CACHE_CONTROL, HeaderValue::from_static("max-age=0, s-maxage=0"));
    assert_eq!(freshness(&older, now, true)[0], Some(Duration::ZERO));
    headers.append(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    assert_eq!(freshness(&headers, now, true), zero);
    assert_eq!(freshness(&headers, now, false), zero);
}
