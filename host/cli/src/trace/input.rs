//! The bytes of a trace, decompressed where they are compressed: one buffer, looked at before it is taken.

use std::io::{self, Read};

use super::frames::{self, Frames};
use super::{Place, Problem};

/// The buffer, and the longest line that a trace may have.
const BUFFER: usize = 1 << 16;

/// The content of a trace from the front.
pub(super) struct Input<'a> {
    source: Box<dyn Read + Send + 'a>,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// The offset of `start` in the content.
    offset: u64,
    /// How many lines were taken.
    lines: u64,
    ended: bool,
}

impl<'a> Input<'a> {
    /// Of a file whose name may say that it is compressed. Where it says so and the content does not, the content is
    /// damaged, and would be read as keys that nobody has asked for.
    pub(super) fn new(source: Box<dyn Read + Send + 'a>, named_compressed: bool) -> Result<Self, Problem> {
        let mut raw = Input::plain(source);
        if !frames::compressed(raw.peek(4)?) {
            if named_compressed {
                let problem = "is named as zstd-compressed, and does not begin as a zstd stream does";
                let remedy = "fetch or compress the file anew; if it is not compressed, name it without .zst";
                return Err(Problem::new(Place::Byte(0), problem, remedy));
            }
            return Ok(raw);
        }
        Ok(Input::plain(Box::new(Frames::new(io::BufReader::with_capacity(BUFFER, raw)))))
    }

    fn plain(source: Box<dyn Read + Send + 'a>) -> Self {
        let buffer = vec![0; BUFFER].into_boxed_slice();
        Input { source, buffer, start: 0, end: 0, offset: 0, lines: 0, ended: false }
    }

    /// The offset of what comes next.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// The number of the line that [`Self::line`] gave last.
    pub(super) fn line_number(&self) -> u64 {
        self.lines
    }

    /// What comes next: at least `least` bytes, or all that is left. `least` is at most the buffer.
    pub(super) fn peek(&mut self, least: usize) -> Result<&[u8], Problem> {
        debug_assert!(least <= BUFFER);
        if self.end - self.start < least && !self.ended {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            while self.end < least && !self.ended {
                match self.source.read(&mut self.buffer[self.end..]) {
                    Ok(0) => self.ended = true,
                    Ok(read) => self.end += read,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => {
                        self.ended = true;
                        let at = self.offset + self.end as u64;
                        return Err(Problem::of_reading(Place::Byte(at), error));
                    }
                }
            }
        }
        Ok(&self.buffer[self.start..self.end])
    }

    /// Takes bytes that were peeked at.
    pub(super) fn take(&mut self, bytes: usize) {
        debug_assert!(bytes <= self.end - self.start);
        self.start += bytes;
        self.offset += bytes as u64;
    }

    /// Takes a line and gives it without its end (LF or CRLF), or nothing where the content ends. Blank lines are
    /// passed over at the end of the content, and an error elsewhere: something is missing there.
    pub(super) fn line(&mut self) -> Result<Option<&[u8]>, Problem> {
        let mut blank = None;
        loop {
            // What is buffered already holds a line most of the time.
            let mut found = memchr::memchr(b'\n', &self.buffer[self.start..self.end]);
            if found.is_none() {
                found = memchr::memchr(b'\n', self.peek(BUFFER)?);
            }
            let (start, left) = (self.start, self.end - self.start);
            let length = match found {
                Some(length) => length,
                None if left == 0 => return Ok(None),
                None if left < BUFFER => left,
                None => {
                    let problem = format!("a line of more than {} bytes", BUFFER - 1);
                    let remedy = "check the format with --trace-format: this may be a binary trace";
                    return Err(Problem::new(Place::Line(self.lines + 1), problem, remedy));
                }
            };
            self.lines += 1;
            self.take((length + 1).min(left));
            let line = start..start + length;
            let line = line.start..line.end - usize::from(self.buffer[line.clone()].ends_with(b"\r"));
            if self.buffer[line.clone()].trim_ascii().is_empty() {
                blank = blank.or(Some(self.lines));
            } else if let Some(blank) = blank {
                let remedy = "remove the line; a key is at least one character";
                return Err(Problem::new(Place::Line(blank), "is blank", remedy));
            } else if memchr::memchr(0, &self.buffer[line.clone()]).is_some() {
                let remedy = "this looks like a binary trace: name its format with --trace-format";
                return Err(Problem::new(Place::Line(self.lines), "holds a zero byte, which no text does", remedy));
            } else {
                return Ok(Some(&self.buffer[line]));
            }
        }
    }
}

impl Read for Input<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.start == self.end {
            return if self.ended { Ok(0) } else { self.source.read(buffer) };
        }
        let read = buffer.len().min(self.end - self.start);
        buffer[..read].copy_from_slice(&self.buffer[self.start..self.start + read]);
        self.take(read);
        Ok(read)
    }
}
